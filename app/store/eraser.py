"""Erases the bytes of deleted rows from the files of the database."""

import logging
import sqlite3
import time
from collections.abc import Callable

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from app.locks import new_lock
from app.store.backends import Backend
from app.store.records import Erasure
from app.telemetry.logs import log

# How long a deletion waits for readers of an older state. If one reads for longer, such as a
# backup, the deletion is answered as pending, and maintenance repeats the erasure.
WAIT_S = 0.5
WAIT_AGAIN_S = 0.1
# How often maintenance erases if nothing is known to be pending: a process may have been killed.
EVERY_S = 60.0
# Pages that are looked through at a time, under the write lock (some 10 ms; 1 s for a gigabyte);
# seconds after which a deletion, or one round of maintenance, leaves the rest for later.
PAGES_AT_ONCE = 2_048
DELETION_S = 0.05
ROUND_S = 0.5
COMMAND_S = 600.0  # for a command; a pass through 128 GiB takes some minutes
AGAIN_S = 0.005  # where another writes
FIRST_PAGE = 2  # page 1 holds the schema alone


class Eraser:
    """Repeats the erasure of deleted rows until it is done.

    One attempt covers every deletion that was committed before it began, so simultaneous calls
    share one. A new Eraser begins as pending, because the previous process may have been killed.
    """

    def __init__(
        self, engine: Engine, backend: Backend, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._backend = backend
        self._clock = clock
        self._attempt = new_lock("erasing.attempt")
        self._counting = new_lock("erasing.counting")
        self._asked = 0  # deletions so far
        self._tried = 0  # those that the last attempt covered
        self._pending_since: float | None = clock() if backend.ERASES else None
        self._rows_left_since: float | None = None
        self._failed = False  # whether the last attempt has failed
        # A pass through the unused parts of all pages: the deletions that it covers, where it is,
        # and the deletions that the last complete one covered.
        self._pass = self._passed = -1
        self._page = 0
        self._done_at = clock()

    def erase(self) -> Erasure:
        """Erase the bytes of a committed deletion; never raises. Waits for one under way (1 s)
        and for readers (`WAIT_S`, or `WAIT_AGAIN_S` if the last attempt failed)."""
        with self._counting:
            self._asked += 1
            mine = self._asked
        with self._attempt:
            if self._tried < mine:
                self._try(DELETION_S)
            done = self._backend.ERASES and self._pending_since is None
            return Erasure.DONE if done else Erasure.PENDING

    def finish(self, seconds: float = COMMAND_S) -> bool:
        """Erase the bytes of every committed deletion, for at most so many seconds. Returns whether
        none are left (with PostgreSQL: true, as nothing can be done here). For a command that has
        deleted something and ends: a running service does not know of it. Never raises."""
        until = self._clock() + seconds
        self.erase()
        with self._attempt:
            while self._pending_since is not None and self._clock() < until:
                self._try(ROUND_S)
                if self._failed:
                    time.sleep(WAIT_AGAIN_S)
            return self._pending_since is None

    def retry(self) -> None:
        """Repeat a pending erasure; erase once a minute even if none is known."""
        with self._attempt:
            if self._pending_since is not None or self._clock() - self._done_at > EVERY_S:
                self._try(ROUND_S)

    def note_rows_left(self, *, left: bool) -> None:
        """Note whether rows of deleted collections have yet to be deleted."""
        if not left:
            self._rows_left_since = None
        elif self._rows_left_since is None:
            self._rows_left_since = self._clock()

    def pending_s(self) -> float:
        """For how many seconds deleted bytes have been left in our files, or rows of deleted
        collections in the database; 0 if there are none."""
        both = self._pending_since, self._rows_left_since
        known = [since for since in both if since is not None]
        return max(self._clock() - min(known), 1e-3) if known else 0.0

    def _try(self, seconds: float) -> None:
        with self._counting:
            covers_more, self._tried = self._asked > self._tried, self._asked
        reason: Exception | None = None
        try:
            erased = self._backend.erase_deleted(
                self._engine, WAIT_AGAIN_S if self._failed else WAIT_S
            )
            self._failed = not erased and self._backend.ERASES
            erased = erased and self._blank_unused(self._clock() + seconds)
        except (sqlite3.Error, SQLAlchemyError, OSError) as error:
            erased, reason = False, error
            self._failed = self._backend.ERASES
        if erased:
            self._pending_since, self._done_at = None, self._clock()
        elif self._backend.ERASES and covers_more and self._pending_since is None:
            self._pending_since = self._clock()
            if reason is not None:
                log(logging.WARNING, "the erasure of deleted rows failed and is retried", reason)
            elif self._failed:
                log(logging.WARNING,
                    "deleted rows are still in the write-ahead log: another process reads an older "
                    "state of the database; they are erased when it has finished")  # fmt: skip

    def _blank_unused(self, until: float) -> bool:
        """Continue the pass through all pages; returns whether it covers every deletion that was
        committed before this attempt."""
        while self._passed < self._tried:
            if not self._page:  # a pass covers what was committed before it began
                self._pass, self._page = self._tried, FIRST_PAGE
            following = self._backend.blank_unused(self._engine, self._page, PAGES_AT_ONCE)
            if following is not None:
                self._page = following
            if following == 0:
                self._passed = self._pass
            elif self._clock() > until:
                return False
            elif following is None:
                time.sleep(AGAIN_S)
        return True
