"""The metrics of several processes as those of one service."""

from collections.abc import Callable, Iterable, Iterator
from typing import cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

# What only rises: it is kept when a process ends, or the sum would fall.
LASTING = ("counter", "histogram", "summary")

SampleKey = tuple[str, tuple[tuple[str, str], ...]]


class SummedMetrics:
    """Sums of expositions. Those of processes that have ended stay in them."""

    def __init__(self) -> None:
        self._ended: list[Metric] = []

    def end(self, exposition: str | None) -> None:
        """Keep what a process that has ended had counted, by its last exposition."""
        if exposition is not None:
            lasting = [one for one in _parsed(exposition) if one.type in LASTING]
            self._ended = list(_summed([*self._ended, *lasting]))

    def of(self, expositions: Iterable[str]) -> str:
        """One exposition: counts are added; of times and ages it has the longest."""
        running = [family for text in expositions for family in _parsed(text)]
        found = _Found(list(_summed([*self._ended, *running])))
        return generate_latest(cast("CollectorRegistry", found)).decode()


class _Found:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _parsed(exposition: str) -> Iterator[Metric]:
    yield from text_string_to_metric_families(exposition)


def _summed(families: Iterable[Metric]) -> Iterator[Metric]:
    """One family of each name."""
    by_name: dict[str, list[Metric]] = {}
    for family in families:
        by_name.setdefault(family.name, []).append(family)
    for name, several in by_name.items():
        first = several[0]
        together = Metric(name, first.documentation, first.type)
        combine = _rule(name, first.type)
        values: dict[SampleKey, list[float]] = {}
        for sample in (sample for family in several for sample in family.samples):
            values.setdefault((sample.name, tuple(sample.labels.items())), []).append(sample.value)
        together.samples = [
            Sample(key[0], dict(key[1]), combine(found)) for key, found in values.items()
        ]
        yield together


def _rule(name: str, kind: str) -> Callable[[Iterable[float]], float]:
    if name.endswith(("_created", "_start_time_seconds")):
        return min
    if kind == "gauge" and name.endswith("_seconds"):
        return max
    return sum
