"""Writes to one SQLite file: in the order in which they came, several in one transaction.

A commit waits for the disk, and SQLite's own waiting is polling, by which one of two writers can
lose every time. So the writes of a process queue here, processes take turns by a file lock, and
writes that wait at the same moment share one transaction (group commit): each has a savepoint of
its own in it, and is answered when the transaction is on disk.
"""

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from app.disk import FairLock
from app.locks import new_lock

# Of one transaction: how many writes, and for how long others may join it.
MOST_WRITES = 32
JOIN_S = 0.05
# For how long a write waits for the file lock that another process has. If that takes longer (a
# suspended process), SQLite's own lock alone decides for UNFAIR_S.
FAIR_S = 2.0
UNFAIR_S = 30.0


class BusyError(sqlite3.OperationalError):
    """Other writes took longer than a write may wait."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class LostTransaction(sqlite3.OperationalError):
    """The transaction that several writes shared was lost by the failure of one of them."""


def _lost(reason: str) -> OperationalError:
    return OperationalError("COMMIT", None, LostTransaction(reason))


class Savepoint:
    """A part of a transaction that can be undone without the rest, by the driver: SQLAlchemy takes
    80 µs for each statement of it."""

    def __init__(self, connection: Connection, name: str) -> None:
        """Begin this part of the connection's transaction."""
        self._connection = connection
        self._name = name
        self._execute("SAVEPOINT")

    def commit(self) -> None:
        """Leave what it did in the transaction."""
        self._execute("RELEASE")

    def rollback(self) -> None:
        """Undo what it did. Raises OperationalError if SQLite has rolled back the whole
        transaction, as it does when the disk is full or fails."""
        self._execute("ROLLBACK TO")
        self._execute("RELEASE")

    def _execute(self, command: str) -> None:
        driver: sqlite3.Connection = self._connection.connection.dbapi_connection  # type: ignore[assignment]
        sql = f"{command} {self._name}"
        try:
            driver.execute(sql)
        except sqlite3.Error as error:
            raise OperationalError(sql, None, error) from error


class _Write:
    """One write that waits for its turn. `alone`: it is no transaction and shares none."""

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.turn = threading.Event()


class _Group:
    """A transaction that several writes share; one thread at a time uses it."""

    def __init__(self, connection: Connection, close: Callable[[], None]) -> None:
        self.connection = connection
        self.writes = 0
        self.failure: Exception | None = None  # of the commit; the writes are not stored then
        self.over = threading.Event()
        self._close = close
        self._begun = time.monotonic()

    def has_room(self) -> bool:
        """Whether another write may join."""
        full = self.writes >= MOST_WRITES or time.monotonic() - self._begun > JOIN_S
        return not full and self.failure is None

    @contextmanager
    def share(self) -> Iterator[None]:
        """One write of the group. If it raises, what it did is undone: with the transaction if it
        is the first, else back to its savepoint."""
        part = None
        try:
            if self.writes:
                part = Savepoint(self.connection, "joined")
            yield
            if part is not None:
                part.commit()
            self.writes += 1
        except BaseException as error:
            if self.writes:
                self._undo(part, error)
            else:
                with suppress(SQLAlchemyError):
                    self.connection.rollback()
            raise

    def _undo(self, part: Savepoint | None, error: BaseException) -> None:
        """Undo one write. If that fails, no write of the transaction is stored."""
        known = error if isinstance(error, SQLAlchemyError) else None
        try:
            if part is None:
                raise known or _lost("a part of it could not be begun")
            part.rollback()
        except SQLAlchemyError:
            self.failure = known or _lost("another write of it failed")

    def commit(self) -> None:
        """Bring every write to disk, unless the transaction was lost."""
        try:
            if self.failure is None and self.writes:
                self.connection.commit()
        except Exception as error:  # noqa: BLE001 (each of the writes raises it)
            self.failure = error
        except BaseException:
            self.failure = _lost("the commit was interrupted")
            raise
        finally:
            self.end()

    def end(self) -> None:
        """Roll back what is not committed, and wake the writes that wait."""
        try:
            with suppress(SQLAlchemyError):
                self._close()
        finally:
            self.over.set()

    def require_kept(self) -> None:
        """Wait for the commit, and raise its failure."""
        self.over.wait()  # for one thread, which waits for the disk and for nothing else
        if self.failure is not None:
            raise self.failure


class WriteQueue:
    """The writes of one process to one file."""

    def __init__(self, file_lock: FairLock, busy_s: float) -> None:
        """A write waits at most `busy_s` seconds for others."""
        self._file_lock = file_lock
        self._busy_s = busy_s
        self._lock = new_lock("database.writes")
        self._waiting: deque[_Write] = deque()
        self._busy = False  # whether some write has its turn
        self._group: _Group | None = None  # that the write which gets its turn next may join
        self._unfair_until = 0.0

    @contextmanager
    def transaction(self, writer: Engine) -> Iterator[Connection]:
        """A write: on disk when the block is left. If the block raises, nothing of it is stored.

        `writer` begins transactions that hold SQLite's write lock. Raises OperationalError where
        others took too long (SQLITE_BUSY), and what SQLAlchemy does.
        """
        deadline = time.monotonic() + self._busy_s
        self._take_turn(_Write(alone=False), deadline)
        with self._turn_passed(writer, deadline) as group:
            try:
                with group.share():
                    yield group.connection
                failure = None
            except Exception as error:  # noqa: BLE001 (raised below)
                failure = error
        # The failure may be due to an earlier write of this transaction (`person_exists`), and is
        # true only if that was committed. If the commit failed, its failure is raised instead.
        group.require_kept()
        if failure is not None:
            raise failure

    @contextmanager
    def alone(self, wait_s: float) -> Iterator[bool]:
        """Keep out the writes of this process, and of others that use the same file lock; False if
        that took longer than `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        mine = _Write(alone=True)
        if not self._queued(mine, deadline):
            yield False
            return
        try:
            with self._precedence(wait_s):
                yield True
        finally:
            self._next_turn()

    # --- turns -------------------------------------------------------------------------------

    def _take_turn(self, write: _Write, deadline: float) -> None:
        if not self._queued(write, deadline):
            raise OperationalError("BEGIN", None, BusyError("other writes took too long"))

    def _queued(self, write: _Write, deadline: float) -> bool:
        """Wait for the write's turn; False if that took too long."""
        with self._lock:
            if not self._busy:
                self._busy = True
                return True
            self._waiting.append(write)
        came = False
        try:
            came = write.turn.wait(max(0.0, deadline - time.monotonic()))
        finally:
            if not came:
                with self._lock:
                    came = write.turn.is_set()  # just now
                    if not came:
                        self._waiting.remove(write)
        return came

    @contextmanager
    def _turn_passed(self, writer: Engine, deadline: float) -> Iterator[_Group]:
        """The transaction of the write whose turn it is: that of the write before, or a new one. At
        the end the next write joins it, or it is committed."""
        group, self._group = self._group, None
        if group is None:
            try:
                group = self._begin(writer, deadline)
            except BaseException:
                self._next_turn()
                raise
        try:
            yield group
        finally:
            if not self._let_join(group):
                try:
                    group.commit()
                finally:
                    self._next_turn()

    def _let_join(self, group: _Group) -> bool:
        """Give the next write its turn in the same transaction, if it may join."""
        if not (group.writes and group.has_room()):
            return False
        with self._lock:
            if not self._waiting or self._waiting[0].alone:
                return False
            self._group = group
            self._waiting.popleft().turn.set()
            return True

    def _next_turn(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().turn.set()
            else:
                self._busy = False

    # --- transactions ------------------------------------------------------------------------

    def _begin(self, writer: Engine, deadline: float) -> _Group:
        with ExitStack() as stack:
            left = max(0.0, deadline - time.monotonic())
            stack.enter_context(self._precedence(min(left, FAIR_S)))
            connection = stack.enter_context(writer.connect())
            self._begin_within(connection, max(0.0, deadline - time.monotonic()))
            return _Group(connection, stack.pop_all().close)

    def _begin_within(self, connection: Connection, seconds: float) -> None:
        """Begin, and wait up to `seconds` for writers that do not use the file lock."""
        if seconds > self._busy_s / 2:
            connection.begin()
            return
        cursor = connection.connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={round(seconds * 1000)}")
        try:
            connection.begin()
        finally:
            cursor.execute(f"PRAGMA busy_timeout={round(self._busy_s * 1000)}")

    @contextmanager
    def _precedence(self, wait_s: float) -> Iterator[None]:
        """Hold the file lock, or continue without it after `wait_s`."""
        fair = time.monotonic() >= self._unfair_until
        held = fair and self._file_lock.acquire(wait_s)
        if fair and not held and wait_s >= FAIR_S:
            self._unfair_until = time.monotonic() + UNFAIR_S
        try:
            yield
        finally:
            if held:
                self._file_lock.release()
