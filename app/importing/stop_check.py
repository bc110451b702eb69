"""Whether a running import goes on: asked between its rows, by the thread that does it."""

import threading
import time
from collections.abc import Callable, Iterator

from app.importing.source_rows import Row

# The thread that imports holds Python's lock while it computes. If the system suspends it
# then, the event loop waits. Linux may suspend a thread that has run for a few milliseconds; one
# that rests before is rarely suspended.
REST_EVERY_S, REST_S = 0.001, 0.0002


class ImportEnded(Exception):
    """The job was cancelled or forgotten, or the service stops."""


class StopCheck:
    """Checks whether a job should continue: a stop of the service at each call, a cancellation by
    other processes a few times a second. Each row and each outcome let the thread rest."""

    def __init__(self, stopping: threading.Event, ask: Callable[[], None], every_s: float) -> None:
        """`ask` raises ImportEnded if another process cancelled the job; it is called at most once
        in `every_s`."""
        self._stopping = stopping
        self._ask = ask
        self._every_s = every_s
        self._asked_at = self._rested_at = time.monotonic()

    def check(self) -> None:
        """Raises ImportEnded if the job should not continue."""
        if self._stopping.is_set():
            raise ImportEnded
        if time.monotonic() - self._asked_at > self._every_s:
            self._ask()
            self._asked_at = time.monotonic()
        self.rest()

    def between(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The rows, with a check before each. So an import ends between two rows that it takes and
        never between two outcomes: all rows that are stored together are reported."""
        for row in rows:
            self.check()
            yield row

    def rest(self) -> None:
        """Rest, if the last time is long ago."""
        if time.monotonic() - self._rested_at > REST_EVERY_S:
            time.sleep(REST_S)
            self._rested_at = time.monotonic()
