"""Database engines: what differs between them, behind one interface. Only this module chooses
one."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL, Connection, Engine, Table, make_url
from sqlalchemy.exc import ArgumentError

from app.errors import DatabaseError
from app.store.backends import postgresql, sqlite
from app.telemetry.logs import log

# Query parameters of a PostgreSQL URL that must not be shown.
_SECRETS = ("password", "sslpassword")
# Of waiting for a server.
RETRY_S = 1.0
LOG_EVERY_S = 10.0


class TransactionPart(Protocol):
    """A part of a transaction: a savepoint. Both methods end it, and raise SQLAlchemyError."""

    def commit(self) -> None:
        """Leave what it did in the transaction."""

    def rollback(self) -> None:
        """Undo what it did. Raises if the whole transaction was lost."""


class Backend(Protocol):
    """What differs between databases; each module of this package is one."""

    OPENING_ADVICE: str  # what to check when a database cannot be opened
    BY_TERM: str  # hint for `metadata_terms` in a join: search by term, then by person
    MOVED: str  # error text for a database file that was moved
    IN_PROCESS: bool  # whether it runs in this process; else reads wait for a server
    ERASES: bool  # whether we erase deleted rows; else the server does
    NEW_TABLES: str | None  # script with the newest tables, in `app.store.schema.MIGRATIONS`

    def create_engine(self, url: URL) -> Engine:
        """An engine that connects when it is first used. Raises DatabaseError."""

    def missing_file(self, url: URL) -> Path | None:
        """The file that the database will be, if there is none yet; None for a server."""

    def reader(self, engine: Engine) -> Engine:
        """The engine with transactions that see one state of the database and cannot write."""

    def single_reader(self, engine: Engine) -> Engine:
        """The engine for reads of one statement, which sees one state without a transaction."""

    def writer(self, engine: Engine) -> Engine:
        """The engine with transactions that write."""

    def written(self, writer: Engine) -> AbstractContextManager[Connection]:
        """A transaction of an engine of `writer`: kept when the block is left, undone if it raises.
        Several may be committed together."""

    def begin_part(self, connection: Connection) -> TransactionPart:
        """Begin a part of an open transaction, which can be undone without the rest."""

    def driver_of(self, connection: Connection) -> Any:
        """The driver's connection, where statements may be executed on it without SQLAlchemy while
        a transaction is open; else None."""

    def lock_schema(self, connection: Connection) -> None:
        """Wait until no other process migrates, and keep others out until the transaction ends."""

    def is_unreachable(self, engine: Engine) -> bool:
        """Whether the database's server is unreachable or still starting."""

    def is_in_place(self, engine: Engine) -> bool:
        """Whether the database's file is still the one that the next start will open."""

    def blank_unused(self, engine: Engine, first: int, count: int) -> int | None:
        """Zero what lies unused in `count` pages of the database from number `first`; the number of
        the next page, 0 after the last, None where it has to wait."""

    def erase_deleted(self, engine: Engine, wait_s: float) -> bool:
        """Erase deleted rows from the database's files. Waits at most `wait_s` seconds for readers
        of an older state; False if some rows may be left."""

    def be_patient(self, connection: Connection) -> None:
        """Let this transaction take as long as it needs, and pause."""

    def last_keys(self, connection: Connection) -> dict[str, int]:
        """The highest key that each table ever gave out: none is given out twice."""

    def set_last_keys(self, connection: Connection, last: Mapping[str, int]) -> None:
        """Give out only higher keys from now on."""

    def insert_pairs(
        self, connection: Connection, table: Table, pairs: Sequence[tuple[int, int]]
    ) -> None:
        """Insert rows into a table with two integer columns."""

    def joined(self, column: str) -> str:
        """The SQL of an aggregate: integers as one text, between commas."""

    def is_full(self, error: BaseException) -> bool:
        """Whether the driver's error means that there is no space left on the disk."""

    def advice(self, error: BaseException) -> str:
        """What the driver's error means and what to do, in a sentence or two."""


_BACKENDS: dict[str, Backend] = {"sqlite": sqlite, "postgresql": postgresql}


def create_engine(url: str | Path) -> Engine:
    """An engine for a database URL, or for the path of an SQLite file. Raises DatabaseError for a
    URL that cannot be served."""
    backend, parsed = _parse(url)
    return backend.create_engine(parsed)


def missing_file(url: str | Path) -> Path | None:
    """The file that the database of a URL will be, if there is none yet: nothing is created. None
    for a server. Raises DatabaseError for a URL that cannot be served."""
    backend, parsed = _parse(url)
    return backend.missing_file(parsed)


def _parse(url: str | Path) -> tuple[Backend, URL]:
    try:
        parsed = make_url(url) if isinstance(url, str) else URL.create("sqlite", database=str(url))
    except (ArgumentError, ValueError):
        # Their texts quote the URL, and with it the password.
        raise DatabaseError(
            "LIKENESS_DATABASE_URL is not a database URL. Write sqlite:////absolute/likeness.db "
            "or postgresql://user:password@host/database (with special characters of the password "
            "percent-encoded), or unset it."
        ) from None
    name = {"postgres": "postgresql"}.get(parsed.get_backend_name(), parsed.get_backend_name())
    if name not in _BACKENDS:
        raise DatabaseError(
            f"Databases of kind '{name}' are not supported; use SQLite or PostgreSQL: "
            "LIKENESS_DATABASE_URL begins with sqlite:// or postgresql://."
        )
    return _BACKENDS[name], parsed


def backend_of(engine: Engine) -> Backend:
    """The backend that made the engine."""
    return _BACKENDS[engine.dialect.name]


def shown_url(engine: Engine) -> str:
    """The engine's URL as it may be printed: without its passwords."""
    return engine.url.difference_update_query(_SECRETS).render_as_string(hide_password=True)


def await_database(
    engine: Engine,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return as soon as the database's server accepts connections, or after `seconds`.

    It does not log in: the first real connection reports a wrong password or a missing database.
    Waiting is logged.
    """
    backend, end, logged_at = backend_of(engine), clock() + seconds, -LOG_EVERY_S
    while backend.is_unreachable(engine) and (now := clock()) < end:
        if now - logged_at >= LOG_EVERY_S:
            left = round(end - now)
            log(logging.WARNING, "the database server does not accept connections yet; waiting",
                database=shown_url(engine), seconds_left=left)  # fmt: skip
            logged_at = now
        sleep(RETRY_S)
