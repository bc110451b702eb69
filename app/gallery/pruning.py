"""Prunes the change log: removes entries that no process can need, a limited number at a time."""

import time
from collections.abc import Callable
from datetime import timedelta

from app.store.sql.changes import ChangeLog

# A running process is seconds behind the database, and its snapshot a minute. A process that is
# further behind than this was suspended or stopped, and builds its index from the database.
KEPT = timedelta(hours=24)
# Limit for one collection whatever their age: about 80 MB.
MOST_REVISIONS = 1_000_000
SWEEP_EVERY_S = 600.0


class Pruning:
    """Goes through the collections of a database every ten minutes. For one thread."""

    def __init__(
        self,
        changes: ChangeLog,
        kept: timedelta = KEPT,
        every_s: float = SWEEP_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._changes = changes
        self._kept = kept
        self._every_s = every_s
        self._clock = clock
        self._place: int | None = 0  # key of the collection that was done last; None between sweeps
        self._swept_at = 0.0

    def round(self) -> None:
        """Do the next piece of work, if one is due. Raises StoreUnavailable or StoreFull."""
        if self._place is None:
            if self._clock() - self._swept_at < self._every_s:
                return
            self._place = 0
        self._place = self._changes.prune(self._place, self._kept, MOST_REVISIONS)
        if self._place is None:
            self._swept_at = self._clock()
