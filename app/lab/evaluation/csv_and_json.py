"""The rows of an evaluation for other programs: JSON with everything, CSV with one figure a row."""

import csv
import io
import json
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from app.decision.rates import Rate
from app.lab.evaluation.rows import FigureRow, document_of, shown

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
    """One line a figure: section, condition, metric, value and the ends of its 95 % interval.

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
