"""PostgreSQL through psycopg 3: several hosts over one database, and a time limit for every
wait."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ExceptionContext,
    NestedTransaction,
    Table,
    event,
    func,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError

from app.errors import DatabaseError

DRIVER = "postgresql+psycopg"
OPENING_ADVICE = (
    "Check that the server runs and can be reached, that the database exists, and that "
    "LIKENESS_DATABASE_URL has the right user and password."
)

IN_PROCESS = False
ERASES = False
MOVED = ""  # never happens
BY_TERM = ""  # the planner chooses well without a hint
NEW_TABLES: str | None = None

CONNECT_TIMEOUT_S = 10
POOL_TIMEOUT_S = 15
# A write that waits for a collection holds its connection. All threads of a process that write
# (16 of calls, 4 of deletions, imports, maintenance, access keys) may do so at once, and 15 are
# left for reads. As many as `KEPT_CONNECTIONS` stay open when they are idle.
MAX_CONNECTIONS = 40
KEPT_CONNECTIONS = 15
CONNECT_ARGS = {
    "application_name": "likeness",
    "client_encoding": "utf8",
    "connect_timeout": CONNECT_TIMEOUT_S,
    # A host that is gone without a word is noticed within a minute.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
SESSION = (
    "SET lock_timeout = '15s'",
    "SET statement_timeout = '120s'",
    "SET idle_in_transaction_session_timeout = '60s'",
    "SET timezone = 'UTC'",
    # An acknowledged enrollment survives a crash of the server; a server with a stricter setting
    # keeps it.
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')",
)
# Migrations may take long; a process that starts second waits for them.
MIGRATION = ("SET LOCAL statement_timeout = 0", "SET LOCAL lock_timeout = '10min'")
PATIENCE = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
)
# Tables that give out keys of their own.
_KEYED = ("collections", "persons", "templates")
MIGRATION_LOCK = 0x4C696B656E657373  # "Likeness"

ADVICE = {
    "25006": "The database server takes no writes: it is a standby or read-only. Point "
    "LIKENESS_DATABASE_URL to the primary.",
    "42501": "The database user lacks a right on Likeness's tables; grant it.",
    "53300": "The database server has no connection left; raise its max_connections.",
    "55P03": "Another request held the collection for too long. Try again in a moment.",
    "57014": "The database took too long and was stopped. Try again in a moment.",
    "57P03": "The database server is starting or stopping. Try again in a moment.",
}
# The client library has no code of a refused connection, only the server's text.
REFUSALS = {
    "too many clients": "53300",
    "too many connections": "53300",
    "remaining connection slots": "53300",
    "the database system is": "57P03",
}
UNREACHABLE = "The database server cannot be reached. Check that it runs, then try again."
UNKNOWN = "The database server failed. Try again in a moment; its own log has the reason."
DISK_FULL = "53100"


def missing_file(_url: URL) -> None:
    """It is no file."""


def create_engine(url: URL) -> Engine:
    """An engine over a pool of connections; nothing is connected yet. Raises DatabaseError."""
    if url.drivername not in (DRIVER, "postgresql", "postgres"):
        raise DatabaseError(
            f"LIKENESS_DATABASE_URL asks for the driver '{url.drivername}'; Likeness uses "
            "psycopg 3. Begin the URL with postgresql://."
        )
    try:
        engine = sqlalchemy.create_engine(
            url.set(drivername=DRIVER),
            connect_args=CONNECT_ARGS,
            pool_pre_ping=True,  # a server that was restarted costs nobody a request
            pool_timeout=POOL_TIMEOUT_S,
            pool_size=KEPT_CONNECTIONS,
            max_overflow=MAX_CONNECTIONS - KEPT_CONNECTIONS,
            hide_parameters=True,  # error texts reach logs; embeddings and metadata must not
        )
    except ImportError as error:
        raise DatabaseError(
            "PostgreSQL needs the driver psycopg, which is not installed or finds no libpq: "
            "pip install 'likeness[postgres]'."
        ) from error
    except ArgumentError as error:
        raise DatabaseError(
            "LIKENESS_DATABASE_URL has a parameter that PostgreSQL's driver does not take."
        ) from error
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "handle_error", _on_error)
    return engine


def reader(engine: Engine) -> Engine:
    """Every statement of a transaction sees the state at its first one."""
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def single_reader(engine: Engine) -> Engine:
    """As `reader`."""
    return reader(engine)


def writer(engine: Engine) -> Engine:
    """A writer locks the collection's row first, and then sees the newest state."""
    return engine.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=False)


def written(writer: Engine) -> AbstractContextManager[Connection]:
    """A transaction of its own: the server commits those of a moment together."""
    return writer.begin()


def begin_part(connection: Connection) -> NestedTransaction:
    """A savepoint."""
    return connection.begin_nested()


def driver_of(_connection: Connection) -> None:
    """None: SQLAlchemy has to see errors, to replace connections that the server closed."""


def lock_schema(connection: Connection) -> None:
    """Held until the transaction ends, by whichever process comes first."""
    for statement in MIGRATION:
        connection.execute(text(statement))
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})


def is_unreachable(engine: Engine) -> bool:
    """Uses libpq's own check, which needs no password and does not depend on the server's
    language."""
    from psycopg import ProgrammingError  # noqa: PLC0415 (the driver may be absent)
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415
    from psycopg.pq import PGconn, Ping  # noqa: PLC0415

    _, given = engine.dialect.create_connect_args(engine.url)
    ours = {"connect_timeout": CONNECT_TIMEOUT_S, **given}
    # Values that are neither text nor numbers are for psycopg itself, not for libpq.
    plain = {name: value for name, value in ours.items() if isinstance(value, str | int)}
    try:
        conninfo = make_conninfo("", **plain)
    except ProgrammingError:  # a parameter that libpq does not know: connecting reports it
        return False
    return PGconn.ping(conninfo.encode()) in (Ping.NO_RESPONSE, Ping.REJECT)


def is_in_place(_engine: Engine) -> bool:
    """Always true: the server manages its files."""
    return True


def blank_unused(_engine: Engine, _first: int, _count: int) -> int | None:
    """Nothing to do: the files are the server's."""
    return 0


def erase_deleted(_engine: Engine, _wait_s: float) -> bool:
    """Does nothing: the server's VACUUM frees the bytes."""
    return False


def be_patient(connection: Connection) -> None:
    """Let this transaction take as long as it needs, and pause."""
    for statement in PATIENCE:
        connection.exec_driver_sql(statement)


def last_keys(connection: Connection) -> dict[str, int]:
    """The highest key that each table ever gave out."""
    return {table: _last_key(connection, table) for table in _KEYED}


def set_last_keys(connection: Connection, last: Mapping[str, int]) -> None:
    """Give out only higher keys from now on."""
    for table, key in last.items():
        if table in _KEYED and (highest := max(key, _last_key(connection, table))):
            sequence = _sequence(connection, table)
            connection.execute(select(func.setval(sequence, highest)))


def _last_key(connection: Connection, table: str) -> int:
    # The name comes from the server itself.
    last = "CASE WHEN is_called THEN last_value ELSE 0 END"
    query = f"SELECT {last} FROM {_sequence(connection, table)}"  # noqa: S608
    return int(connection.exec_driver_sql(query).scalar_one())


def _sequence(connection: Connection, table: str) -> str:
    return str(connection.execute(select(func.pg_get_serial_sequence(table, "id"))).scalar_one())


def insert_pairs(connection: Connection, table: Table, pairs: Sequence[tuple[int, int]]) -> None:
    """Insert rows into a table with two integer columns: as two arrays, which takes a third of the
    time of single rows."""
    # The names are the table's own.
    statement = (
        f"INSERT INTO {table.name} "  # noqa: S608
        "SELECT * FROM unnest(CAST(%(a)s AS bigint[]), CAST(%(b)s AS bigint[]))"
    )
    first, second = zip(*pairs, strict=True)
    connection.exec_driver_sql(statement, {"a": list(first), "b": list(second)})


def joined(column: str) -> str:
    """The SQL of an aggregate: integers as one text, between commas."""
    return f"string_agg(CAST({column} AS text), ',')"


def is_full(error: BaseException) -> bool:
    """PostgreSQL gives a full disk its own code, except where the system's text comes through."""
    return getattr(error, "sqlstate", None) == DISK_FULL or "no space left" in str(error).lower()


def advice(error: BaseException) -> str:
    """By SQLSTATE; an error without one comes from connecting."""
    code = getattr(error, "sqlstate", None)
    if code is None:
        code = next((one for text, one in REFUSALS.items() if text in str(error)), None)
    if code is None or code.startswith(("08", "57P01", "57P02")):
        return UNREACHABLE
    return ADVICE.get(code, UNKNOWN)


def _on_connect(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        for statement in SESSION:
            cursor.execute(statement)
    connection.commit()


def _on_error(context: ExceptionContext) -> None:
    """Keep the server's first line only: its DETAIL quotes the row, embedding and all, and error
    texts reach logs."""
    diagnosis = getattr(context.original_exception, "diag", None)
    summary = diagnosis.message_primary if diagnosis else None
    if summary is None:
        return  # it never came from the server
    context.original_exception.args = (summary,)
    if context.sqlalchemy_exception is not None:
        kind = type(context.original_exception).__name__
        context.sqlalchemy_exception.args = (f"({kind}) {summary}",)
