"""The time that a request spends in each stage."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class StageTimes:
    """Milliseconds by stage, added up over the photos of a request. For one event loop."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}

    def add(self, timings: Mapping[str, float]) -> None:
        """Add the stages of one image."""
        for stage, spent in timings.items():
            self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + spent

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time within the context to a stage, unless an error ends it."""
        start = time.perf_counter()
        yield
        self.add({name: (time.perf_counter() - start) * 1000})
