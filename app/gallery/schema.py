"""Bring a database to this version's tables: Alembic, under the database's own write lock."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app.errors import DatabaseError
from app.gallery.backends.sqlite import WRITING

MIGRATIONS = Path(__file__).parent / "migrations"


def migrate(engine: Engine) -> None:
    """Upgrade to the newest revision; processes that start together do it one after another.

    Raises DatabaseError when the file is no database of ours, or one of a newer version.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    try:
        writing = engine.execution_options(**{WRITING: True})
        with writing.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise DatabaseError(
            f"The database {engine.url} was written by a newer version of Likeness ({error}). "
            "Install that version, or point LIKENESS_DATA_DIR to another folder."
        ) from error
    except DBAPIError as error:
        raise DatabaseError(
            f"The database {engine.url} cannot be opened: {error.orig}. Check that the folder "
            "can be written, has room, and that the file is a Likeness database."
        ) from error
