"""Metrics of several processes as those of one service: sums of their expositions in the text form
of Prometheus. They are added as text, line by line: the parser of prometheus_client takes 30 ms
of processor time for one process, and the process that adds them also accepts connections."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client.utils import floatToGoString

# What only rises: it is kept when a process ends, or the sum would fall.
LASTING = ("counter", "histogram", "summary")
_HELP, _TYPE = "# HELP ", "# TYPE "


@dataclass(slots=True)
class _Family:
    """Samples of one name, by what precedes their value: `name{label="value"}`."""

    name: str
    kind: str = ""
    head: list[str] = field(default_factory=list)
    samples: dict[str, float] = field(default_factory=dict)

    def add(self, other: "_Family") -> None:
        combine, samples = _rule(self.name, self.kind), self.samples
        for key, value in other.samples.items():
            samples[key] = combine(samples[key], value) if key in samples else value


class SummedMetrics:
    """Sums of expositions. Those of processes that have ended stay in them."""

    def __init__(self) -> None:
        self._ended: dict[str, _Family] = {}

    def end(self, exposition: str | None) -> None:
        """Keep what a process that has ended had counted, by its last exposition."""
        if exposition is not None:
            _add(self._ended, (one for one in _parsed(exposition) if one.kind in LASTING))

    def of(self, expositions: Iterable[str]) -> str:
        """One exposition: counts are added; of times and ages it has the longest."""
        together: dict[str, _Family] = {}
        _add(together, self._ended.values())
        for text in expositions:
            _add(together, _parsed(text))
        lines: list[str] = []
        for family in together.values():
            lines += family.head
            lines += [f"{key} {_written(value)}" for key, value in family.samples.items()]
        return "".join(f"{line}\n" for line in lines)


def _add(families: dict[str, _Family], others: Iterable[_Family]) -> None:
    for other in others:
        kept = families.get(other.name)
        if kept is None:
            kept = families[other.name] = _Family(other.name, other.kind, other.head)
        kept.add(other)


def _parsed(exposition: str) -> list[_Family]:
    """The families of an exposition as `prometheus_client.generate_latest` writes it: a line with
    HELP, one with TYPE, then the samples, without times."""
    families: list[_Family] = []
    for line in exposition.split("\n"):  # a label may have other line breaks
        if line.startswith(_HELP):
            families.append(_Family(line[len(_HELP) :].partition(" ")[0], head=[line]))
        elif line.startswith(_TYPE):
            families[-1].head.append(line)
            families[-1].kind = line.rpartition(" ")[2]
        elif line:
            key, _, value = line.rpartition(" ")
            families[-1].samples[key] = float(value)
    return families


def _written(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _rule(name: str, kind: str) -> Callable[[float, float], float]:
    if name.endswith(("_created", "_start_time_seconds")):
        return min
    if kind == "gauge" and name.endswith("_seconds"):
        return max
    return float.__add__
