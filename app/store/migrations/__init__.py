"""Alembic migrations: every database starts at the first and moves forward."""
