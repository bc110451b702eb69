"""Bring a database to this version's tables: Alembic, one process at a time.

Alembic is imported only where there is something to migrate: that takes 0.2 s. So a new SQLite
database gets all tables from one script, which a test compares with the migrations.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from app.errors import DatabaseError
from app.store.backends import Backend, backend_of, create_engine, shown_url
from app.store.sql.tables import database

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
NEWEST = "head"
# Alembic's own table: one row, the revision of the database.
VERSION_TABLE = "alembic_version"


def migrate(engine: Engine, revision: str = NEWEST) -> None:
    """Upgrade to the newest revision, or an older one; all of it or nothing.

    Processes that start together do it one after another. Raises DatabaseError when the database
    cannot be opened, is not a Likeness database, or is one of a newer version.
    """
    backend = backend_of(engine)
    with _clear_errors(engine), backend.writer(engine).begin() as connection:
        backend.lock_schema(connection)
        if revision == NEWEST:
            _create_tables(backend, connection)
        if revision == NEWEST and _stored_revisions(connection) == [newest_revision()]:
            return
        from alembic import command  # noqa: PLC0415

        config = _config()
        config.attributes["connection"] = connection
        with _clear_command_errors(engine):
            command.upgrade(config, revision)


@contextmanager
def opened_database(url: str | Path) -> Iterator[Engine]:
    """A database that has this version's tables, until the block ends. Raises as `migrate` does."""
    engine = create_engine(url)
    try:
        migrate(engine)
        yield engine
    finally:
        engine.dispose()


def _create_tables(backend: Backend, connection: Connection) -> None:
    """Make in a database without tables all that the migrations make, if it has a script."""
    if backend.NEW_TABLES is None or inspect(connection).get_table_names():
        return
    script = (MIGRATIONS / backend.NEW_TABLES).read_text("utf-8")
    for statement in script.split(";\n"):
        connection.exec_driver_sql(statement)
    made = {"id": str(uuid.uuid4()), "created_at": datetime.now(UTC)}
    connection.execute(database.insert(), made)


def pending(engine: Engine) -> list[str]:
    """What `migrate` would do now, a line per step: its number and what it brings. Changes nothing;
    raises DatabaseError as `migrate` does."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    scripts = ScriptDirectory.from_config(_config())
    with (
        _clear_errors(engine),
        _clear_command_errors(engine),
        backend_of(engine).reader(engine).begin() as connection,
    ):
        current = next(iter(_stored_revisions(connection)), "base")
        scripts.get_revision(current)  # CommandError where we do not know it
        steps = list(scripts.iterate_revisions(NEWEST, current))
    return [f"{step.revision} {step.doc}" for step in reversed(steps)]


def newest_revision() -> str:
    """The revision that this version's tables have: the files begin with the numbers of theirs."""
    return max(file.name[:4] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _stored_revisions(connection: Connection) -> list[str]:
    """What Alembic has noted in the database; nothing in a new one."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return []
    return list(connection.scalars(text(f"SELECT version_num FROM {VERSION_TABLE}")))  # noqa: S608


def _config() -> "Config":
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _clear_errors(engine: Engine) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise DatabaseError(
            f"The database {shown_url(engine)} cannot be opened: {error.orig}. "
            f"{backend_of(engine).OPENING_ADVICE}"
        ) from error


@contextmanager
def _clear_command_errors(engine: Engine) -> Iterator[None]:
    from alembic.util import CommandError  # noqa: PLC0415

    try:
        yield
    except CommandError as error:
        raise DatabaseError(
            f"The database {shown_url(engine)} was written by a newer version of Likeness "
            f"({error}). Start that version or a later one, restore a backup from before the "
            "upgrade, or name another database by LIKENESS_DATABASE_URL or LIKENESS_DATA_DIR."
        ) from error
