"""The file that an SQLite database is, and whether it is still where it was opened."""

import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from app.disk import private_file, private_folder
from app.errors import DatabaseError


class MovedError(sqlite3.OperationalError):
    """There is another file, or none, where the database was."""

    ADVICE: Final = (
        "The database file was moved away or replaced while the service runs. Put it back, or "
        "restart the service to work with what is there now."
    )


class DatabaseFile:
    """One file by its name, and by the number that the file system gave it.

    What is written into a file that lost its name is not in the database that the next start
    opens; and where nothing has that name, SQLite would quietly begin an empty database.
    """

    def __init__(self, path: Path) -> None:
        """The file as it is now; made, with its folder, where it is missing. Raises OSError."""
        self._path = path
        private_folder(path.parent)
        private_file(path)
        self._number = self._now()

    def is_in_place(self) -> bool:
        """Whether its name still leads to it."""
        return self._now() == self._number

    def require(self) -> None:
        """Raises MovedError unless it is in place."""
        if not self.is_in_place():
            raise MovedError(MovedError.ADVICE)

    def _now(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def database_file(url: URL) -> DatabaseFile | None:
    """The file of a database; None for one in memory or behind a URI. Raises DatabaseError."""
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        return None
    path = Path(url.database).absolute()
    try:
        return DatabaseFile(path)
    except OSError as error:
        raise DatabaseError(
            f"The data folder {path.parent} cannot be made: {error.strerror}. "
            "Set LIKENESS_DATA_DIR to a folder that can be written."
        ) from error
