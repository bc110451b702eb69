"""The journal of an import: rows that need not be analysed again after an interruption. The
database has what was enrolled; the journal has what was rejected or skipped, and why. If it or its
last entries are lost, these rows are analysed again.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.disk import private_folder
from app.errors import StoreUnavailable

BUSY_TIMEOUT_S = 30.0


class Journal:
    """Refusals by a digest of the person, the content and everything that decided. Readable by its
    owner alone; it holds no person ids, photos or embeddings."""

    def __init__(self, path: Path, context: str) -> None:
        """`context`: collection, embedding space, policy and options; another one is another
        decision. This and all below raise StoreUnavailable."""
        self._path = path
        with self._translate_errors():
            private_folder(path.parent)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(path, BUSY_TIMEOUT_S)
            salt = self._prepared()
        self._state = hashlib.blake2b(context.encode(), key=salt, digest_size=24)

    def _prepared(self) -> bytes:
        """The salt of its keys; made with the tables where they are missing."""
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS done (key BLOB PRIMARY KEY, result TEXT, reason TEXT, "
            "detail TEXT) WITHOUT ROWID"
        )
        self._connection.execute("CREATE TABLE IF NOT EXISTS salt (salt BLOB)")
        if self._connection.execute("SELECT count(*) FROM salt").fetchone()[0] == 0:
            self._connection.execute("INSERT INTO salt VALUES (?)", (os.urandom(32),))
        self._connection.commit()
        salt: bytes = self._connection.execute("SELECT salt FROM salt").fetchone()[0]
        return salt

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Failures as what an operator can act upon."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(
                f"The journal of imports, {self._path.name} in the data folder, cannot be used: "
                f"{error}. If the disk is full, free some space. A damaged file may be removed: "
                "the next import checks all rows again."
            ) from error

    def key(self, person_id: str, content: str) -> bytes:
        """The digest of one content of one person."""
        state = self._state.copy()
        state.update(f"\0{person_id}\0{content}".encode())
        return state.digest()

    def find(self, key: bytes) -> tuple[str, str, str] | None:
        """Result, reason and detail of before."""
        query = "SELECT result, reason, detail FROM done WHERE key = ?"
        with self._translate_errors():
            found: tuple[str, str, str] | None = self._connection.execute(query, (key,)).fetchone()
        return found

    def note(self, key: bytes, result: str, reason: str, detail: str) -> None:
        """Remember an outcome; on disk after `keep`."""
        with self._translate_errors():
            self._connection.execute(
                "INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?)", (key, result, reason, detail)
            )

    def keep(self) -> None:
        """Write what was noted."""
        with self._translate_errors():
            self._connection.commit()

    def close(self) -> None:
        """Close it; what was not kept is lost."""
        self._connection.close()
