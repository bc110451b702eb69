"""The rows of an evaluation as tables of formatted text, for the terminal and the report."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from app.decision.rates import Rate
from app.lab.evaluation.figure_rows import FigureRow, shown
from app.lab.evaluation.texts import (
    NOTHING,
    change_text,
    interval_text,
    rate_text,
    similarity_text,
)

TITLES: Mapping[str, str] = {
    "model": "Model",
    "data": "Data",
    "pairs": "Verification on labelled pairs",
    "comparisons": "Every photo against every other",
    "setting": "Identification at the setting of the service",
    "identification": "Open-set identification, one photo enrolled a person",
    "predictions": "FPIR: promised by the calibration, simulated on real faces",
    "scores": "One score of several templates",
    "discard": "Error versus discard",
    "groups": "By group, at the thresholds of all people",
    "detection": "Detection",
    "timings": "Timings",
}
# More figures of one condition than this are read better below one another.
MOST_COLUMNS = 6
# What is no count and no rate with an interval.
_SHARES = {"accuracy", "accuracy_std", "fnmr_of_all", "fnmr_of_the_rest", "discarded"}
_CHANGES = {"gain", "error"}
_SIMILARITIES = {"threshold", "eer_threshold"}
_ABBREVIATIONS = {"eer", "fmr", "fnmr", "fpir", "fnir", "id"}


@dataclass(frozen=True, slots=True)
class TableCell:
    """One figure as text, with its interval ("" where it has none)."""

    text: str
    interval: str = ""
    extrapolated: bool = False

    def __str__(self) -> str:
        words = f"{self.text} ({self.interval})" if self.interval else self.text
        return f"{words}, extrapolated" if self.extrapolated else words


@dataclass(frozen=True, slots=True)
class FigureTable:
    """Conditions of one section that have the same figures."""

    section: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[TableCell, ...]], ...]

    @property
    def named(self) -> bool:
        """Whether any row has a condition to name."""
        return any(name for name, _ in self.rows)

    @property
    def upright(self) -> bool:
        """Whether the figures are read better below one another: one condition with many."""
        return len(self.rows) == 1 and len(self.headings) > MOST_COLUMNS


@dataclass(slots=True)
class _Condition:
    section: str
    name: str
    figures: dict[str, TableCell] = field(default_factory=dict)


def tables_of(rows: Iterable[FigureRow]) -> list[FigureTable]:
    """All tables, a section after the other; conditions of a section with the same figures make
    one table."""
    tables: dict[tuple[str, ...], list[_Condition]] = {}
    for one in _conditions(shown(rows)):
        tables.setdefault((one.section, *one.figures), []).append(one)
    return [
        FigureTable(
            alike[0].section,
            tuple(_heading(metric) for metric in alike[0].figures),
            tuple((one.name, tuple(one.figures.values())) for one in alike),
        )
        for alike in tables.values()
    ]


def _conditions(rows: Iterable[FigureRow]) -> list[_Condition]:
    found: dict[tuple[str, str], _Condition] = {}
    for row in rows:
        if row.section in TITLES:
            key = (row.section, row.condition)
            one = found.setdefault(key, _Condition(*key))
            one.figures[row.metric] = _cell(row)
    return list(found.values())


def _cell(row: FigureRow) -> TableCell:
    value = row.value
    if value is None or isinstance(value, str):
        return TableCell(NOTHING if value is None else value)
    if isinstance(value, Rate):
        return TableCell(rate_text(value), interval_text(value), value.extrapolated)
    if row.metric == "kept":
        return TableCell("kept" if value else "not kept")
    if isinstance(value, bool):
        return TableCell("yes" if value else "no")
    if isinstance(value, int):
        return TableCell(f"{value:,}")
    return TableCell(_number(row.metric, value))


def _number(metric: str, value: float) -> str:
    if metric in _SIMILARITIES:
        return similarity_text(value)
    if metric in _CHANGES:
        return change_text(value)
    if not math.isfinite(value):
        return NOTHING
    if metric in _SHARES:
        return f"{value:.2%}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _heading(metric: str) -> str:
    words = metric.split("_")
    return " ".join(word.upper() if word in _ABBREVIATIONS else word for word in words)
