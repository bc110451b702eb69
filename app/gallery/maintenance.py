"""The maintenance thread of a gallery, and the pruning of its change log and of kept answers."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from app.errors import LikenessError
from app.gallery.gallery import Gallery
from app.store.sql.changes import ChangeLog
from app.store.sql.idempotency import IdempotencyStore
from app.telemetry.logs import log

ROUND_S = 1.0
LOG_AGAIN_S = 600.0  # interval for logging a failure that continues
# A running process is seconds behind the database, and its snapshot a minute. A process that is
# further behind than this was suspended or stopped, and builds its index from the database.
KEPT = timedelta(hours=24)
# Entries of one collection that are kept at most, whatever their age: about 80 MB.
MOST_REVISIONS = 1_000_000
SWEEP_EVERY_S = 600.0


class MaintenanceThread:
    """Opens the indexes, then does their maintenance once a second until stopped.

    `ready`: whether the indexes of large collections are open, as far as they can be read; a search
    waits only for its own. `failure` is the current error of the maintenance, None if the last
    round succeeded.
    """

    def __init__(
        self,
        gallery: Gallery,
        seconds: float = ROUND_S,
        clock: Callable[[], float] = time.monotonic,
        before_indexes: Sequence[Callable[[], None]] = (),
    ) -> None:
        """`before_indexes`: tasks that are done in each round before the work on the indexes, which
        may take minutes."""
        self.ready = False
        self.failure: str | None = None  # an error's code, or the type of an unexpected error
        self._gallery = gallery
        self._seconds = seconds
        self._clock = clock
        self._failing_since = self._logged_at = 0.0
        self._tasks: list[Callable[[], None]] = [*before_indexes, self._maintain]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def add_task(self, task: Callable[[], None]) -> None:
        """Also call this task in each round; it must do a limited amount of work."""
        self._tasks.append(task)

    def start(self) -> None:
        """Begin, unless that was done before."""
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """End after the round that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def failing_s(self) -> float:
        """For how many seconds no round has succeeded; 0 if the last one did."""
        return 0.0 if self.failure is None else max(self._clock() - self._failing_since, 1e-3)

    def _run(self) -> None:
        while not self._stop.is_set():
            failed: Exception | None = None
            for task in self._tasks:
                try:
                    task()
                except Exception as error:  # noqa: BLE001 (the database may be away for a while)
                    failed = failed or error
            self._note(failed)
            self._stop.wait(self._seconds)

    def _maintain(self) -> None:
        if not self.ready:
            self._gallery.prepare()
            self.ready = True
        self._gallery.run_maintenance()

    def _note(self, error: Exception | None) -> None:
        now = self._clock()
        if error is None:
            if self.failure is not None:
                log(logging.INFO, "maintenance of the gallery succeeds again")
            self.failure = None
            return
        if self.failure is None:
            self._failing_since = now
        if self.failure is None or now - self._logged_at > LOG_AGAIN_S:
            log(logging.WARNING, "maintenance of the gallery failed and is retried", error)
            self._logged_at = now
        self.failure = error.code if isinstance(error, LikenessError) else type(error).__name__


class Pruning:
    """Prunes the change log: removes entries that no process can need, a limited number at a time.
    Goes through the collections of a database every ten minutes, then through the answers that were
    kept for an Idempotency-Key and have expired. For one thread."""

    def __init__(
        self,
        changes: ChangeLog,
        answers: IdempotencyStore,
        kept: timedelta = KEPT,
        every_s: float = SWEEP_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changes = changes
        self._answers = answers
        self._kept = kept
        self._every_s = every_s
        self._clock = clock
        self._place: int | None = 0  # key of the collection that was done last; None between sweeps
        self._swept_at = 0.0
        self._answers_expired = False  # there may be more of them

    def round(self) -> None:
        """Do the next piece of work, if one is due. Raises StoreUnavailable or StoreFull."""
        if self._answers_expired:
            self._answers_expired = self._answers.prune()
            return
        if self._place is None:
            if self._clock() - self._swept_at < self._every_s:
                return
            self._place = 0
        self._place = self._changes.prune(self._place, self._kept, MOST_REVISIONS)
        if self._place is None:
            self._swept_at = self._clock()
            self._answers_expired = True
