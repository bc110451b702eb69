"""How late the event loop is: everything that it should not do itself shows here."""

import asyncio
import os
import time
from contextlib import suppress

from app.telemetry.metrics import Metrics

EVERY_S = 0.02
# Linux's count of the nanoseconds that a thread could run and had no core, its second number.
SCHEDULING = "/proc/thread-self/schedstat"


class LoopLag:
    """Wakes up again and again, and counts by how much it was late.

    Where the system tells it (Linux), the time in which other processes had the core is left out:
    that says nothing about what this one does.
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
    """How long the current thread has waited for a core; 0 where the system does not tell."""

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
        """So far, of this thread."""
        if self._descriptor is None:
            return 0.0
        return int(os.pread(self._descriptor, 100, 0).split()[1]) / 1e9
