"""`Database`: the transactions of one engine, whose failures are raised as the errors of the
service."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cached_property
from typing import NoReturn, TypeVar

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    PendingRollbackError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from app.encryption.embeddings import EmbeddingCipher
from app.encryption.ring import KeyRing
from app.errors import InvalidRequest, LikenessError, StoreFull, StoreUnavailable
from app.store.backends import backend_of, shown_url
from app.store.eraser import Eraser
from app.store.sql import tables
from app.store.sql.audit_log import AuditWriter
from app.store.sql.embedding_rows import EmbeddingRowCodec

T = TypeVar("T")
RETRY_AFTER_S = 1
# Connections for single statements that stay open: part of SQLAlchemy's 15 (its pool's default).
MAX_IDLE_CONNECTIONS = 4
# The key, in a connection's `info`, of the code of the error that refused a part of a transaction.
REFUSED = "refused"
# The transaction in which this context reads that database, while it is in `Database.one_state`.
_ONE_STATE: "ContextVar[tuple[Database, Connection] | None]" = ContextVar("state", default=None)


def now_utc() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class Database:
    """One database: its transactions, its clock and its key ring. Everything that reads or writes
    the database in a process shares one.

    Transactions that read (`reading`) and that write (`writing`) see one state of the database and
    are stored completely or not at all; both raise StoreFull or StoreUnavailable if it fails.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], datetime] = now_utc,
        ring: KeyRing | None = None,
        audit_key: bytes | None = None,
    ) -> None:
        """Over an engine whose tables are up to date. With a key ring embeddings are encrypted when
        they are written; `audit_key` signs the end of the audit log."""
        self.engine = engine
        self.clock = clock
        self.ring = ring
        self._audit = AuditWriter(audit_key)
        self._backend = backend_of(engine)
        self._reader = self._backend.reader(engine)
        self._single_reader = self._backend.single_reader(engine)
        self._idle_connections: deque[Connection] = deque()
        # Pools of other classes give each thread a connection of its own.
        keeps = self._backend.IN_PROCESS and isinstance(engine.pool, QueuePool)
        self._most_idle = MAX_IDLE_CONNECTIONS if keeps else 0
        self._writer = self._backend.writer(engine)
        self.eraser = Eraser(engine, self._backend)
        self.refusal: str | None = None  # the code of the last write's failure, if it failed

    # --- what it is --------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Its URL without passwords, for messages."""
        return shown_url(self.engine)

    @property
    def in_process(self) -> bool:
        """Whether it runs in this process; else every read waits for a server."""
        return self._backend.IN_PROCESS

    def identity(self) -> str:
        """Its id: random, created with the database, the same in every process. A restore replaces
        it by that of the backup's database."""
        with self.reading() as connection:
            return str(connection.execute(select(tables.database.c.id)).scalar_one())

    @cached_property
    def codec(self) -> EmbeddingRowCodec:
        """How embeddings are written to rows and read from them."""
        return EmbeddingRowCodec(EmbeddingCipher(self.ring) if self.ring else None)

    def ping(self) -> None:
        """Raise StoreUnavailable if the database does not answer, or its file was moved."""
        self.require_in_place()
        with self.reading() as connection:
            connection.execute(select(tables.collections.c.id).limit(1))

    def close(self) -> None:
        """Close every connection."""
        self._most_idle = 0
        while self._idle_connections:
            self._idle_connections.pop().close()
        self.engine.dispose()

    # --- transactions ------------------------------------------------------------------------

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """Everything that this context reads within the block is of one state of the database,
        however long that takes. No writer waits for it."""
        with self.reading() as connection:
            self._backend.be_patient(connection)
            token = _ONE_STATE.set((self, connection))
            try:
                yield
            finally:
                _ONE_STATE.reset(token)

    def _of_one_state(self) -> Connection | None:
        found = _ONE_STATE.get()
        return found[1] if found is not None and found[0] is self else None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads, and sees one state throughout."""
        if (connection := self._of_one_state()) is not None:
            yield connection
            return
        try:
            with self._reader.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            self._raise_translated(error, "")

    @contextmanager
    def reading_once(self) -> Iterator[Connection]:
        """For a single statement that reads, faster than a transaction. The connection to SQLite
        stays open: taking one from the pool takes longer than the read."""
        if (held := self._of_one_state()) is not None:
            yield held
            return
        try:
            try:
                connection = self._idle_connections.pop()
            except IndexError:
                connection = self._single_reader.connect()
            try:
                yield connection
                if connection.in_transaction():  # as SQLAlchemy sees it
                    connection.rollback()
            except BaseException:
                connection.close()
                raise
            if len(self._idle_connections) < self._most_idle:
                self._idle_connections.append(connection)
            else:
                connection.close()
        except SQLAlchemyError as error:
            self._raise_translated(error, "")

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; on disk when the block is left."""
        try:
            yield from self._written()
        except (StoreFull, StoreUnavailable) as error:
            self.refusal = error.code
            raise

    def attempt(self, connection: Connection, work: Callable[[], T]) -> T | Exception:
        """Do a part of a transaction that writes. If it raises, what it did is undone and its error
        returned: the rest of the transaction can still be committed.

        Raises SQLAlchemyError if the whole transaction was lost.
        """
        noted = self._audit.noted(connection)
        part = self._backend.begin_part(connection)
        try:
            done = work()
            part.commit()
            return done
        except Exception as error:  # noqa: BLE001 (returned)
            failed: Exception = error
        try:
            part.rollback()
        except SQLAlchemyError as lost:
            raise (failed if isinstance(failed, SQLAlchemyError) else lost) from None
        if connection.invalidated and isinstance(failed, SQLAlchemyError):
            raise failed  # the server closed the connection: nothing was left to be rolled back
        self._audit.forget(connection, noted)
        try:
            if isinstance(failed, SQLAlchemyError):
                self._raise_translated(failed, "Nothing was changed. ")
        except Exception as error:  # noqa: BLE001 (returned)
            failed = error
        if isinstance(failed, StoreFull | StoreUnavailable):
            connection.info[REFUSED] = failed.code
        try:
            # A fault keeps its traceback.
            return failed.with_traceback(None) if isinstance(failed, LikenessError) else failed
        finally:
            # Its traceback, or that of its cause, holds this frame, which must not hold it.
            del failed, work

    def _written(self) -> Iterator[Connection]:
        outcome = "Nothing was changed. "
        self.require_in_place(outcome)
        try:
            with self._backend.written(self._writer) as connection:
                self._audit.begin(connection)
                connection.info.pop(REFUSED, None)
                yield connection
                refused = connection.info.pop(REFUSED, None)
                self._audit.append(connection, self.clock())
                # From here on a lost connection leaves open what the database did.
                outcome = "The change may have been kept or not: send the request again. "
        except SQLAlchemyError as error:
            self._raise_translated(error, outcome)
        # Data written to a file that was moved away must not be acknowledged.
        self.require_in_place(outcome)
        self.refusal = refused

    def require_in_place(self, outcome: str = "") -> None:
        """Raise StoreUnavailable if the database's file was moved away or replaced."""
        if not self._backend.is_in_place(self.engine):
            raise StoreUnavailable(outcome + self._backend.MOVED, {"retry_after": RETRY_AFTER_S})

    def _raise_translated(self, error: SQLAlchemyError, outcome: str) -> NoReturn:
        if isinstance(error, IntegrityError):
            raise error  # a fault of this code, not of the database
        if isinstance(error, DataError):
            raise InvalidRequest(
                "The request has a text or a number that the database cannot keep, such as a NUL "
                "character."
            ) from error
        if isinstance(error, PoolTimeout):
            raise StoreUnavailable(
                f"{outcome}All database connections are in use. Try again in a moment.",
                {"retry_after": RETRY_AFTER_S},
            ) from error
        if isinstance(error, PendingRollbackError):  # an earlier statement has lost the connection
            raise StoreUnavailable(
                f"{outcome}The connection to the database was lost. Try again in a moment.",
                {"retry_after": RETRY_AFTER_S},
            ) from error
        if not isinstance(error, DBAPIError) or error.orig is None:
            raise error
        if self._backend.is_full(error.orig):
            raise StoreFull(
                "The disk that holds the database is full; nothing was changed. Free some space "
                "and send the request again."
            ) from error
        raise StoreUnavailable(
            outcome + self._backend.advice(error.orig), {"retry_after": RETRY_AFTER_S}
        ) from error
