"""How late the event loop is: everything that it should not do itself shows here."""

import asyncio
import time

from app.telemetry.metrics import Metrics

EVERY_S = 0.02


class LoopLag:
    """Wakes up again and again, and counts by how much it was late."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def watch(self) -> None:
        """Watch the loop that this runs on, until it is cancelled."""
        while True:
            due = time.perf_counter() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self._metrics.observe_loop_lag(max(0.0, time.perf_counter() - due))
