"""Prometheus metrics, on a registry of their own so that two apps in one process do not mix; the
time that each stage of an image takes, and how late the event loop is: a late event loop does CPU
work that it should not do."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Seconds over which the longest recent lag of the event loop is taken.
RECENT_S = 15.0


class Metrics:
    """Everything the service counts. Labels are bounded: routes, stages, codes, names of keys,
    never ids."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # process_open_fds, process_max_fds, process_resident_memory_bytes, ...; Linux alone has it.
        ProcessCollector(registry=self.registry)
        # Those of several processes are added.
        Gauge("likeness_processes", "Processes that serve.", registry=self.registry).set(1)
        self._requests = Counter(
            "likeness_requests", "Answered requests.", ["route", "method", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "likeness_request_seconds", "From the end of the head to the end of the answer.",
            ["route", "method"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._stage_seconds = Histogram(
            "likeness_stage_seconds", "Time of one stage of one image.", ["stage"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        # Kept, because looking a label up costs as much as counting.
        self._stages: dict[str, Histogram] = {}
        self._answered: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._faces = Counter("likeness_faces", "Faces found.", registry=self.registry)
        self._problems = Counter(
            "likeness_problems", "Error answers by code.", ["code"], registry=self.registry
        )
        self._probing = Counter(
            "likeness_probing", "Times that a key had many misses in a short time.", ["key"],
            registry=self.registry,
        )  # fmt: skip
        self.pending = Gauge(
            "likeness_pending_requests", "Requests processed or queued.",
            registry=self.registry,
        )  # fmt: skip

        self.waiting = Gauge(
            "likeness_waiting_photos", "Photos that wait for a worker.",
            registry=self.registry,
        )  # fmt: skip
        self.transfers = Gauge(
            "likeness_transfers", "Bodies and answers being transferred, by kind.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self._lag = Histogram(
            "likeness_event_loop_lag_seconds", (
                "How late the event loop woke up; on Linux without its wait for a core."
            ),
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._recent_lag = Gauge(
            "likeness_event_loop_lag_recent_seconds", "The longest lag of the last 15 s.",
            registry=self.registry,
        )  # fmt: skip
        self._lags: deque[tuple[float, float]] = deque()

    def runs_on(self, provider: str) -> None:
        """Count this process for what runs its networks."""
        Gauge(
            "likeness_processes_by_engine", "Processes by what runs their networks.", ["engine"],
            registry=self.registry,
        ).labels(provider).set(1)  # fmt: skip

    def observe(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed at each request of Prometheus."""
        Gauge(name, description, registry=self.registry).set_function(value)

    def observe_loop_lag(self, seconds: float) -> None:
        """Record how late the event loop woke up."""
        self._lag.observe(seconds)
        now = time.monotonic()
        while self._lags and (self._lags[-1][1] <= seconds):
            self._lags.pop()  # it can no longer be the longest
        self._lags.append((now, seconds))

    def set_loop_lag(self) -> None:
        """Bring the gauge of the longest lag up to date."""
        since = time.monotonic() - RECENT_S
        while self._lags and self._lags[0][0] < since:
            self._lags.popleft()
        self._recent_lag.set(self._lags[0][1] if self._lags else 0.0)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request of a route template."""
        kept = self._answered.get((route, method, status))
        if kept is None:
            kept = (
                self._requests.labels(route, method, str(status)),
                self._request_seconds.labels(route, method),
            )
            self._answered[route, method, status] = kept
        kept[0].inc()
        kept[1].observe(seconds)

    def observe_image(self, timings_ms: Mapping[str, float], faces: int) -> None:
        """Count one analysed image and its stages."""
        for stage, milliseconds in timings_ms.items():
            histogram = self._stages.get(stage)
            if histogram is None:
                histogram = self._stages[stage] = self._stage_seconds.labels(stage)
            histogram.observe(milliseconds / 1000)
        self._faces.inc(faces)

    def observe_problem(self, code: str) -> None:
        """Count one error answer."""
        self._problems.labels(code).inc()

    def observe_probing(self, key: str) -> None:
        """Count one notice of many misses by the keys of a name."""
        self._probing.labels(key).inc()

    def render(self) -> bytes:
        """The exposition that Prometheus scrapes."""
        return generate_latest(self.registry)


class SearchCosts(Collector):
    """What searches of the gallery cost, as the index counts it: one counter a field."""

    def __init__(self, counts: Callable[[], Any]) -> None:
        """`counts` gives a dataclass of numbers that only rise."""
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One family a field."""
        for name, value in asdict(self._counts()).items():
            text = f"Searches of the gallery: {name}; see docs/metrics.md."
            yield CounterMetricFamily(f"likeness_index_{name}", text, value=value)


class OpenIndexCounts(Collector):
    """How many indexes are open, and the memory they take."""

    def __init__(self, counts: Callable[[], Any]) -> None:
        """`counts` gives an object with the numbers `open`, `bytes`, `opened` and `closed`."""
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Two gauges and two counters."""
        now = self._counts()
        yield GaugeMetricFamily(
            "likeness_open_indexes", "Collections whose index is open.", value=now.open
        )
        yield GaugeMetricFamily(
            "likeness_open_index_bytes", "Memory of open indexes, without mapped files.",
            value=now.bytes,
        )  # fmt: skip
        yield CounterMetricFamily("likeness_indexes_opened", "Indexes opened.", value=now.opened)
        yield CounterMetricFamily(
            "likeness_indexes_closed", "Indexes closed to free memory, or with their collection.",
            value=now.closed,
        )  # fmt: skip


class BatchSizes(Collector):
    """How large the batches are that networks with an owner thread run."""

    def __init__(self, batches: Callable[[], Mapping[str, Mapping[int, int]]]) -> None:
        self._batches = batches

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One family, a sample for each network and size."""
        family = CounterMetricFamily(
            "likeness_batches", "Batches run, by network and size.", labels=["network", "size"]
        )
        for network, sizes in self._batches().items():
            for size, count in sizes.items():
                family.add_metric([network, str(size)], count)
        yield family


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
