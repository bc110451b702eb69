"""Where the time of one image goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
