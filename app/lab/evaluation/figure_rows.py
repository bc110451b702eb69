"""An evaluation as one list of rows, which its JSON, CSV, tables, summary and charts are made of;
JSON has everything, CSV one figure per row.

A new field of the figures becomes a row by itself. Only names are declared here: the condition
that figures hold under, metrics that are not called like their field, and fields that are no
figures.
"""

import csv
import io
import json
import math
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from app.decision.rates import Rate
from app.lab.evaluation.figures import (
    ComparedPair,
    ComparisonPoint,
    DataFigures,
    DetectionFigures,
    DiscardFigures,
    Evaluation,
    FpirPrediction,
    GroupFigures,
    Histogram,
    IdentificationFigures,
    IdentificationPoint,
    PairsFigures,
    PhotoProblem,
    ScoreFigures,
    Series,
)
from app.lab.evaluation.metrics import EqualErrorRate, FoldAccuracy, MeasuredPoint, SizeRecall
from app.lab.evaluation.texts import verdict

# A number, text, truth value or None; a `Rate` with its interval; a curve; or a list of those.
Value = Any
FigurePath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One figure: its place in the document, and its section, condition and metric in tables.

    `metric` is "" for what tables do not show: curves, single photos and what the condition says
    already. `path` is () for a count of something that the document lists.
    """

    path: FigurePath
    section: str
    condition: str
    metric: str
    value: Value


def rows_of(evaluation: Evaluation) -> Iterator[FigureRow]:
    """Every figure once, in the order of the fields of `Evaluation`."""
    yield FigureRow(("verdict",), "verdict", "", "text", verdict(evaluation))
    for field in fields(evaluation):
        section = _SECTIONS.get(field.name, field.name)
        yield from _rows(
            getattr(evaluation, field.name), _Place((field.name,), section, "", field.name)
        )


def document_of(rows: Iterable[FigureRow]) -> dict[str, Any]:
    """The rows as the tree that their paths describe: mappings, lists and the values of rows."""
    root: dict[str, Any] = {}
    for row in rows:
        if row.path:
            _put(root, row.path, row.value)
    return root


def shown(rows: Iterable[FigureRow]) -> list[FigureRow]:
    """The rows that tables and CSV have, one section after the other; a rate that nothing could be
    counted for is left out."""
    kept = [
        row
        for row in rows
        if row.metric and (row.value is not None or row.metric in _SHOWN_WITHOUT_VALUE)
    ]
    order = {section: n for n, section in enumerate(SECTIONS)}
    return sorted(kept, key=lambda row: order[row.section])


SECTIONS = (
    "verdict", "model", "data", "pairs", "comparisons", "setting", "identification",
    "predictions", "scores", "discard", "groups", "detection", "timings",
)  # fmt: skip
_SECTIONS = {"created_at": "model"}
_SHOWN_WITHOUT_VALUE = {"calibration_id", "target_fpir"}


@dataclass(frozen=True, slots=True)
class _Place:
    path: FigurePath
    section: str
    condition: str
    metric: str

    def of(self, key: str | int, metric: str, condition: str = "") -> "_Place":
        """A place below this one; conditions add up."""
        condition = ", ".join(part for part in (self.condition, condition) if part)
        return _Place((*self.path, key), self.section, condition, metric)


def _rows(value: Any, place: _Place) -> Iterator[FigureRow]:
    if is_dataclass(value) and not isinstance(value, _LEAVES):
        yield from _rows_of_fields(value, place)
    elif isinstance(value, Mapping) and value:
        condition, metric = _MAPPINGS[place.metric]
        for key, item in value.items():
            yield from _rows(item, place.of(str(key), metric, condition.format(key)))
    elif isinstance(value, tuple) and any(is_dataclass(item) for item in value):
        for n, item in enumerate(value):
            yield from _rows(item, place.of(n, ""))
    else:
        listed = isinstance(value, _LISTS) or place.path == (place.section,)
        metric = "" if listed else place.metric
        yield FigureRow(place.path, place.section, place.condition, metric, value)


def _rows_of_fields(value: Any, place: _Place) -> Iterator[FigureRow]:
    kind = type(value)
    condition = _CONDITIONS[kind](value) if kind in _CONDITIONS else ""
    computed = [name for name, member in vars(kind).items() if isinstance(member, property)]
    for name in [field.name for field in fields(value)] + computed:
        metric: str = _METRICS.get((kind, name), name)
        metric = "" if name in _NOT_SHOWN.get(kind, ()) else metric
        yield from _rows(getattr(value, name), place.of(name, metric, condition))
    if kind in _COUNTS:
        here = place.of("", "", condition)
        for metric, count in _COUNTS[kind](value).items():
            yield FigureRow((), here.section, here.condition, metric, count)


def _put(tree: Any, path: FigurePath, value: Value) -> None:
    """Set the value at `path`. An index in a path is at most one beyond the end of its list."""
    for key, below in pairwise(path):
        empty: Any = [] if isinstance(below, int) else {}
        if isinstance(tree, list) and key == len(tree):
            tree.append(empty)
        elif isinstance(tree, dict):
            tree.setdefault(key, empty)
        tree = tree[key]
    tree[path[-1]] = value


_LEAVES = (Rate, Series, Histogram)
_LISTS = (tuple, Mapping, Series, Histogram)

_CONDITIONS: Mapping[type, Callable[[Any], str]] = {
    DataFigures: lambda data: data.name,
    PairsFigures: lambda pairs: pairs.name,
    MeasuredPoint: lambda point: (
        "pack's threshold" if point.target_fmr is None else f"FMR={point.target_fmr:g}"
    ),
    ComparisonPoint: lambda point: f"FMR={point.target_fmr:g}",
    IdentificationFigures: lambda size: f"persons={size.persons}",
    IdentificationPoint: lambda point: f"FPIR={point.target_fpir:g}",
    FpirPrediction: lambda point: (
        f"persons={point.persons}, templates={point.templates_per_person}, "
        f"held out={'yes' if point.held_out else 'no'}, FPIR={point.target_fpir:g}"
    ),
    ScoreFigures: lambda score: (
        f"rule={score.rule}, templates={score.templates}, persons={score.persons}"
    ),
    DiscardFigures: lambda curve: curve.measure,
    GroupFigures: lambda group: f"{group.attribute}={group.group}",
    DetectionFigures: lambda detection: detection.name,
    SizeRecall: lambda size: f"faces of at least {size.min_side:g} px",
}
# Condition and metric of what a mapping holds, by the mapping's name.
_MAPPINGS = {"stages_ms": ("{}", "median_ms"), "fnir": ("FPIR={}", "fnir")}
_METRICS: Mapping[tuple[type, str], str] = {
    (FoldAccuracy, "mean"): "accuracy",
    (FoldAccuracy, "std"): "accuracy_std",
    (EqualErrorRate, "interval"): "eer",
    (EqualErrorRate, "threshold"): "eer_threshold",
    (FpirPrediction, "simulated"): "simulated_fpir",
    (SizeRecall, "interval"): "recall",
}
_NOT_SHOWN: Mapping[type, set[str]] = {
    DataFigures: {"name"},
    PairsFigures: {"name"},
    MeasuredPoint: {"target_fmr"},
    ComparisonPoint: {"target_fmr"},
    EqualErrorRate: {"rate", "trials"},
    IdentificationFigures: {"persons"},
    IdentificationPoint: {"target_fpir"},
    FpirPrediction: {
        "persons", "templates_per_person", "target_fpir", "held_out", "by_maximum",
    },
    ScoreFigures: {"rule", "templates", "persons"},
    DiscardFigures: {"measure"},
    GroupFigures: {"attribute", "group"},
    DetectionFigures: {"name"},
    SizeRecall: {"min_side", "recall"},
    ComparedPair: {field.name for field in fields(ComparedPair)},
    PhotoProblem: {field.name for field in fields(PhotoProblem)},
}  # fmt: skip


def _data_counts(data: DataFigures) -> Mapping[str, Value]:
    codes = sorted(Counter(problem.code for problem in data.problems).items())
    return {"left_out": len(data.left_out), **{f"problems_{code}": n for code, n in codes}}


def _discard_ends(curve: DiscardFigures) -> Mapping[str, Value]:
    if not curve.fnmr:
        return {}
    first, last = curve.fnmr[0], curve.fnmr[-1]
    return {"fnmr_of_all": first, "discarded": curve.discarded[-1], "fnmr_of_the_rest": last}


_COUNTS: Mapping[type, Callable[[Any], Mapping[str, Value]]] = {
    DataFigures: _data_counts,
    DetectionFigures: lambda detection: {"failures": len(detection.failures)},
    DiscardFigures: _discard_ends,
}


CSV_HEADER = ("section", "condition", "metric", "value", "low", "high")

# What makes a spreadsheet take a cell for a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def to_json(rows: Iterable[FigureRow]) -> str:
    """Every row with a path, in a tree. What is no finite number becomes null, since JSON has no
    way to write it."""
    return json.dumps(_plain(document_of(rows)), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """Values of dictionaries, lists, strings and finite numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return value


def to_csv(rows: Iterable[FigureRow]) -> str:
    """One line per figure: section, condition, metric, value and the ends of its 95 % interval.

    Points of curves, the people of single photos and names of photos are left out. A rate that is
    extrapolated is followed by a line `<metric>_extrapolated`. A cell of text that a spreadsheet
    would take for a formula gets a leading apostrophe; numbers stay numbers.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in shown(rows):
        for cells in _lines(row):
            writer.writerow([_cell(value) for value in cells])
    return written.getvalue().encode("utf-8", "replace").decode("utf-8")


def _lines(row: FigureRow) -> Iterator[tuple[Any, ...]]:
    place, value = (row.section, row.condition), row.value
    if not isinstance(value, Rate):
        yield (*place, row.metric, value, None, None)
        return
    yield (*place, row.metric, value.value, value.low, value.high)
    if value.extrapolated:
        yield (*place, f"{row.metric}_extrapolated", True, None, None)


def _cell(value: Any) -> Any:
    """A value as the file has it: what is missing or no finite number is an empty cell."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA_STARTS) else value
    plain = _plain(value)
    return int(plain) if isinstance(plain, bool) else plain
