"""SQLite: write-ahead log, full durability, and transactions that say at once if they write."""

from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, event

from app.errors import DatabaseError

BUSY_TIMEOUT_S = 15
PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # an acknowledged enrolment survives a power cut
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # a deleted embedding is overwritten with zeros
    "PRAGMA temp_store=MEMORY",
)
# Execution option of a connection that is going to write.
WRITING = "likeness_writing"


def create_engine(url: URL) -> Engine:
    """An engine over one file, whose folder is made if need be. Raises DatabaseError."""
    if url.database and url.database != ":memory:":
        folder = Path(url.database).absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(
                f"The data folder {folder} cannot be made: {error.strerror}. "
                "Set LIKENESS_DATA_DIR to a folder that can be written."
            ) from error
    engine = sqlalchemy.create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
        hide_parameters=True,  # error texts reach logs; embeddings and metadata must not
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def empty_log(engine: Engine) -> None:
    """Fold the write-ahead log into the database and empty it.

    Deleted rows are zeroed in the database by `secure_delete`, but the log still holds them as they
    were. While another process reads an older state the log stays; the next deletion tries again.
    """
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def _on_connect(connection: Any, _record: Any) -> None:
    for pragma in PRAGMAS:
        connection.execute(pragma)


def _on_begin(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail half-way with "database is
    # locked"; one that takes the write lock at its start waits its turn.
    writing = connection.get_execution_options().get(WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
