"""The time that each stage of an image takes, and how late the event loop is: a late event loop
does CPU work that it should not do."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from app.telemetry.metrics import Metrics


class StageClock:
    """Milliseconds spent in each stage of one image."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - start) * 1000
            self.timings_ms[name] = self.timings_ms.get(name, 0.0) + spent


EVERY_S = 0.02  # between two looks at the event loop
# Linux: the second number is the nanoseconds in which a thread was runnable but had no core.
SCHEDULING = "/proc/thread-self/schedstat"


class LoopLag:
    """Wakes up at regular intervals, and measures by how much it was late.

    On Linux the time in which other processes had the core is not counted, because it says nothing
    about this process.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def watch(self) -> None:
        """Watch the loop that this runs on, until it is cancelled."""
        with CoreWait() as core:
            while True:
                due, before = time.perf_counter() + EVERY_S, core.seconds()
                await asyncio.sleep(EVERY_S)
                late = time.perf_counter() - due - (core.seconds() - before)
                self._metrics.observe_loop_lag(max(0.0, late))


class CoreWait:
    """How long the current thread has waited for a core; 0 if the system does not say."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def __enter__(self) -> "CoreWait":
        with suppress(OSError):
            self._descriptor = os.open(SCHEDULING, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def seconds(self) -> float:
        """Seconds so far, of this thread."""
        if self._descriptor is None:
            return 0.0
        return int(os.pread(self._descriptor, 100, 0).split()[1]) / 1e9
