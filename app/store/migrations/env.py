"""Alembic's entry point: migrate over the connection that the caller holds open and locked."""

from alembic import context

from app.store.sql.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
context.run_migrations()
