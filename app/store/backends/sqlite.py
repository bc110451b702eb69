"""SQLite: write-ahead log, full durability, and transactions that declare at their start whether
they write."""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Connection, Engine, Table, event

from app.disk import FairLock
from app.store.backends.sqlite_file import (
    DatabaseFile,
    MovedError,
    absent_file,
    blank_pages,
    database_file,
    read_sizes,
)
from app.store.backends.sqlite_writes import Savepoint, WriteQueue

OPENING_ADVICE = (
    "Check that the folder can be written, that its disk has free space, and that the file is a "
    "Likeness database."
)

MOVED = MovedError.ADVICE
IN_PROCESS = True
ERASES = True
# SQLite takes the index by person otherwise, whose pages lie apart: eight times as long.
BY_TERM = "INDEXED BY sqlite_autoindex_metadata_terms_1"
NEW_TABLES: str | None = "new_sqlite.sql"

BUSY_TIMEOUT_S = 15.0
RETRY_S = 0.02
TURN_S = 0.05  # of the erasure of unused parts, which is repeated
PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",  # an acknowledged enrollment survives a power cut
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # a deleted embedding is overwritten with zeros
    "PRAGMA temp_store=MEMORY",
)
# Execution option of a connection that is going to write.
WRITING = "likeness_writing"
AUTOCOMMIT = "likeness_autocommit"
# Execution option of an engine: its file.
FILE = "likeness_file"
# Execution option of an engine with a file: the queue of this process's writes.
WRITES = "likeness_writes"

# By primary result code: https://www.sqlite.org/rescode.html
ADVICE = {
    sqlite3.SQLITE_BUSY: "Another process held the database for too long. Try again in a moment.",
    sqlite3.SQLITE_CANTOPEN: "The database file cannot be opened. Check that its folder is there "
    "and that the service may read and write it.",
    sqlite3.SQLITE_CORRUPT: "The database file is damaged. Stop the service and restore a backup.",
    sqlite3.SQLITE_IOERR: "The disk that holds the database fails to read or write. Check the "
    "disk and how it is mounted, then restart the service.",
    sqlite3.SQLITE_NOTADB: "The database file is damaged. Stop the service and restore a backup.",
    sqlite3.SQLITE_READONLY: "The database is read-only. Check that its disk is mounted writable "
    "and that the service may write the file and its folder.",
}
UNKNOWN = "The database failed. Try again in a moment; the log has the reason."
# The shared-memory file beside the log could not grow: a full disk, reported in another way.
ALSO_FULL = sqlite3.SQLITE_IOERR_SHMSIZE
PRIMARY = 0xFF


def create_engine(url: URL) -> Engine:
    """An engine over one file, whose folder is made if need be. Raises DatabaseError."""
    # Biometric data: only the service's user may read it; SQLite's other files get the same mode.
    file = database_file(url)
    engine = sqlalchemy.create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
        hide_parameters=True,  # error texts reach logs; embeddings and metadata must not
        execution_options={FILE: file, WRITES: _write_queue(file)},
    )
    # SQLAlchemy calls it before each connection that is opened; None lets it continue.
    event.listen(engine, "do_connect", lambda *_: file.require())
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def missing_file(url: URL) -> Path | None:
    """The file that the database will be, if there is none yet."""
    return absent_file(url)


def reader(engine: Engine) -> Engine:
    """Transactions that never wait for a writer."""
    return engine


def single_reader(engine: Engine) -> Engine:
    """For single statements: SQLite makes a transaction of each by itself."""
    return engine.execution_options(**{AUTOCOMMIT: True})


def writer(engine: Engine) -> Engine:
    """Transactions that hold the only write lock from their start."""
    return engine.execution_options(**{WRITING: True})


def written(writer: Engine) -> AbstractContextManager[Connection]:
    """A write; with a file, in turn with others, and in one transaction with those that wait."""
    queue: WriteQueue | None = writer.get_execution_options()[WRITES]
    return writer.begin() if queue is None else queue.transaction(writer)


def begin_part(connection: Connection) -> Savepoint:
    """A savepoint."""
    return Savepoint(connection, "part")


def driver_of(connection: Connection) -> Any:
    """The driver's connection: it never loses its server."""
    return connection.connection.dbapi_connection


def _write_queue(file: DatabaseFile) -> WriteQueue:
    return WriteQueue(FairLock(file.path), BUSY_TIMEOUT_S)


def lock_schema(_connection: Connection) -> None:
    """Nothing to do: a writing transaction is alone already."""


def is_unreachable(_engine: Engine) -> bool:
    """Always false: there is no server."""
    return False


def is_in_place(engine: Engine) -> bool:
    """Whether the file is still the one that was opened."""
    return bool(_file_of(engine).is_in_place())


def erase_deleted(engine: Engine, wait_s: float) -> bool:
    """Fold the write-ahead log into the database and empty it.

    Deleted rows are zeroed in the database by `secure_delete`, but the log still holds them as they
    were, and stays while anybody reads an older state or writes. Writers wait meanwhile too.
    """
    deadline = time.monotonic() + wait_s
    with _alone(engine, wait_s) as alone:
        return alone and _erase_deleted(engine, deadline)


def _alone(engine: Engine, wait_s: float) -> AbstractContextManager[bool]:
    queue: WriteQueue | None = engine.get_execution_options()[WRITES]
    return nullcontext(True) if queue is None else queue.alone(wait_s)


def _erase_deleted(engine: Engine, deadline: float) -> bool:
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        left = max(0.0, deadline - time.monotonic())
        cursor.execute(f"PRAGMA busy_timeout={round(left * 1000)}")
        try:
            while not _checkpoint(cursor):
                # Another process that does the same is not waited for by SQLite itself.
                if time.monotonic() > deadline:
                    return False
                time.sleep(RETRY_S)
        finally:
            cursor.execute(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT_S * 1000)}")
    finally:
        connection.close()
    return True


def blank_unused(engine: Engine, first: int, count: int) -> int | None:
    """Zero the unused parts of some pages; the number of the page that follows, 0 after the last.
    None where that has to wait: somebody reads an older state, or writes.

    With the write-ahead log empty and the write lock held, the pages are those of the file.
    """
    with _alone(engine, TURN_S) as alone:
        return _blank_unused_alone(engine, first, count) if alone else None


def _file_of(engine: Engine) -> DatabaseFile:
    file: DatabaseFile = engine.get_execution_options()[FILE]
    return file


def _blank_unused_alone(engine: Engine, first: int, count: int) -> int | None:
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout=0")
        try:
            return _blank_unused(cursor, _file_of(engine), first, count)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & PRIMARY == sqlite3.SQLITE_BUSY:
                return None
            raise
        finally:
            cursor.execute(f"PRAGMA busy_timeout={round(BUSY_TIMEOUT_S * 1000)}")
    finally:
        connection.close()


def _blank_unused(cursor: Any, file: DatabaseFile, first: int, count: int) -> int | None:
    if not _checkpoint(cursor):
        return None
    cursor.execute("BEGIN IMMEDIATE")
    try:
        if not _log_is_empty(file.path):
            return None
        descriptor = file.descriptor()
        sizes = read_sizes(descriptor)
        if sizes is None:
            return None  # never erased, and never said to be
        changed_before = file.is_changed
        file.is_changed = True  # if the disk fails, some pages may have been written
        file.is_changed = blank_pages(descriptor, sizes, first, count) > 0 or changed_before
        if file.is_changed:
            # Other connections keep pages as they were and could write them back. The change of a
            # number that nobody reads makes them read again.
            (version,) = cursor.execute("PRAGMA user_version").fetchone()
            cursor.execute(f"PRAGMA user_version={(version + 1) & 0x7FFF_FFFF}")
        (pages,) = cursor.execute("PRAGMA page_count").fetchone()
    finally:
        cursor.execute("COMMIT")
    if file.is_changed:
        cursor.execute("PRAGMA shrink_memory")  # nor does this one keep pages as they were
    file.is_changed = False
    return first + count if first + count <= pages else 0


def _log_is_empty(database: Path) -> bool:
    try:
        return database.with_name(f"{database.name}-wal").stat().st_size == 0
    except FileNotFoundError:
        return True


def _checkpoint(cursor: Any) -> bool:
    """Empty the write-ahead log; returns whether that succeeded."""
    (busy, _, _) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def be_patient(_connection: Connection) -> None:
    """Reading has no limit of time."""


def last_keys(connection: Connection) -> dict[str, int]:
    """The highest key that each table ever gave out."""
    rows = connection.exec_driver_sql("SELECT name, seq FROM sqlite_sequence")
    return {str(table): int(key) for table, key in rows}


def set_last_keys(connection: Connection, last: Mapping[str, int]) -> None:
    """Give out only higher keys from now on."""
    for table, key in last.items():
        before = last_keys(connection).get(table)
        statement = (
            "INSERT INTO sqlite_sequence (seq, name) VALUES (?, ?)"
            if before is None
            else "UPDATE sqlite_sequence SET seq = ? WHERE name = ?"
        )
        connection.exec_driver_sql(statement, (max(key, before or 0), table))


def insert_pairs(connection: Connection, table: Table, pairs: Sequence[tuple[int, int]]) -> None:
    """Insert rows into a table with two integer columns."""
    # The names are the table's own.
    statement = f"INSERT INTO {table.name} VALUES (?, ?)"  # noqa: S608
    connection.exec_driver_sql(statement, list(pairs))


def joined(column: str) -> str:
    """The SQL of an aggregate: integers as one text, between commas."""
    return f"group_concat({column})"


def is_full(error: BaseException) -> bool:
    """No space on the disk, or for the file's own page limit."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code == ALSO_FULL or code & PRIMARY == sqlite3.SQLITE_FULL


def advice(error: BaseException) -> str:
    """By SQLite's result code."""
    if isinstance(error, MovedError):
        return MovedError.ADVICE
    return ADVICE.get(getattr(error, "sqlite_errorcode", 0) & PRIMARY, UNKNOWN)


def _on_connect(connection: Any, _record: Any) -> None:
    for pragma in PRAGMAS:
        connection.execute(pragma)


def _on_begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(AUTOCOMMIT, False):
        return  # without BEGIN and COMMIT, which cost half as much as a short statement
    # A transaction that reads first and writes later can fail half-way with "database is
    # locked"; one that takes the write lock at its start waits its turn.
    writing = options.get(WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
