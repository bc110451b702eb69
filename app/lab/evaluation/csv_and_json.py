"""An evaluation for other programs: JSON with everything, CSV with one figure a row."""

import csv
import io
import json
import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from app.lab.evaluation.figures import Evaluation
from app.lab.evaluation.rows import FigureRow, Value, rows_of
from app.lab.evaluation.verdict import verdict

CSV_HEADER = ("section", "condition", "metric", "value", "low", "high")

# What makes a spreadsheet take a cell for a formula (OWASP, "CSV Injection").
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def to_json(evaluation: Evaluation) -> str:
    """The verdict, then every field and computed property, in the order of declaration.

    What is no finite number becomes null: JSON has no word for it.
    """
    document = {"verdict": verdict(evaluation), **_plain(evaluation)}
    return json.dumps(document, indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    """Values of dictionaries, lists, strings and finite numbers."""
    if is_dataclass(value) and not isinstance(value, type):
        own = [field.name for field in fields(value)]
        computed = [name for name, kind in vars(type(value)).items() if isinstance(kind, property)]
        return {name: _plain(getattr(value, name)) for name in own + computed}
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


def to_csv(evaluation: Evaluation) -> str:
    """One row a figure: section, condition, metric, value and the ends of its 95 % interval.

    Points of curves, the people of single photos and names of photos are left out. A rate that is
    extrapolated is followed by a row `<metric>_extrapolated`. A cell of text that a spreadsheet
    would take for a formula gets a leading apostrophe; numbers stay numbers.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in rows_of(evaluation):
        for cells in _lines(row):
            writer.writerow([_cell(value) for value in cells])
    return written.getvalue().encode("utf-8", "replace").decode("utf-8")


def _lines(row: FigureRow) -> Iterator[tuple[Value, ...]]:
    place = (row.section, row.condition)
    yield (*place, row.metric, row.value, row.low, row.high)
    if row.extrapolated:
        yield (*place, f"{row.metric}_extrapolated", True, None, None)


def _cell(value: Value) -> Value:
    """A value as it stands in the file: what is missing or no finite number is an empty cell."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA_STARTS) else value
    plain: Value = _plain(value)
    return int(plain) if isinstance(plain, bool) else plain
