"""Bring a database to this version's tables: Alembic, one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.errors import DatabaseError
from app.store.backends import backend_of, shown_url

MIGRATIONS = Path(__file__).parent / "migrations"
NEWEST = "head"


def migrate(engine: Engine, revision: str = NEWEST) -> None:
    """Upgrade to the newest revision, or an older one; all of it or nothing.

    Processes that start together do it one after another. Raises DatabaseError when the database
    cannot be opened, is not a Likeness database, or is one of a newer version.
    """
    backend = backend_of(engine)
    config = _config()
    with _clear_errors(engine), backend.writer(engine).begin() as connection:
        backend.lock_schema(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def pending(engine: Engine) -> list[str]:
    """What `migrate` would do now, a line a step: its number and what it brings. Changes nothing;
    raises DatabaseError as `migrate` does."""
    scripts = ScriptDirectory.from_config(_config())
    with _clear_errors(engine), backend_of(engine).reader(engine).begin() as connection:
        current = MigrationContext.configure(connection).get_current_revision() or "base"
        scripts.get_revision(current)  # CommandError where we do not know it
        steps = list(scripts.iterate_revisions(NEWEST, current))
    return [f"{step.revision} {step.doc}" for step in reversed(steps)]


def newest_revision() -> str:
    """The revision that this version's tables have."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _clear_errors(engine: Engine) -> Iterator[None]:
    shown = shown_url(engine)
    try:
        yield
    except CommandError as error:
        raise DatabaseError(
            f"The database {shown} was written by a newer version of Likeness ({error}). Start "
            "that version or a later one, restore a backup from before the upgrade, or name "
            "another database by LIKENESS_DATABASE_URL or LIKENESS_DATA_DIR."
        ) from error
    except DBAPIError as error:
        raise DatabaseError(
            f"The database {shown} cannot be opened: {error.orig}. "
            f"{backend_of(engine).OPENING_ADVICE}"
        ) from error
