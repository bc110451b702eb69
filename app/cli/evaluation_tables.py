"""An evaluation as tables on the terminal, made of the rows that the CSV is made of."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rich.markup import escape
from rich.table import Table

from app.cli.console import out
from app.decision.rates import Rate
from app.lab.evaluation.csv_and_json import FigureRow, Value, rows_of
from app.lab.evaluation.figures import Evaluation
from app.lab.evaluation.texts import NOTHING, interval_text, rate_text
from app.lab.evaluation.verdict import verdict

SHOWN_PROBLEMS = 10
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
    "groups": "By group, at the thresholds of everybody",
    "detection": "Detection",
    "timings": "Timings",
}
# More figures of one condition than this are read better below one another.
MOST_COLUMNS = 6
# A share without a unit of its own; everything else is shown as it is.
_SHARES = {"accuracy", "accuracy_std", "gain", "error"}
_EXTRAPOLATED = "_extrapolated"


@dataclass(slots=True)
class _Condition:
    """The figures of one condition, by metric, in words."""

    section: str
    name: str
    figures: dict[str, str] = field(default_factory=dict)


def print_evaluation(evaluation: Evaluation) -> None:
    """The verdict, then every section that there is; the report has the curves and full lists."""
    out.print(verdict(evaluation), style="bold", markup=False, highlight=False)
    conditions = [one for one in _conditions(rows_of(evaluation)) if one.section in TITLES]
    section = ""
    for alike in _tables(conditions):
        new = alike[0].section != section
        section = alike[0].section
        out.print(_table(alike, TITLES[section] if new else None))
        if section == "data":
            _print_problems(evaluation)


def _conditions(rows: Iterable[FigureRow]) -> list[_Condition]:
    found: dict[tuple[str, str], _Condition] = {}
    for section, name, metric, value, low, high in rows:
        one = found.setdefault((section, name), _Condition(section, name))
        if metric.endswith(_EXTRAPOLATED):
            one.figures[metric.removesuffix(_EXTRAPOLATED)] += ", extrapolated"
        else:
            one.figures[metric] = _words(metric, value, low, high)
    return list(found.values())


def _words(metric: str, value: Value, low: Value, high: Value) -> str:
    if isinstance(value, str) or value is None:
        return NOTHING if value is None else value
    if isinstance(low, float) and isinstance(high, float):
        rate = Rate(float(value), low, high)
        return f"{rate_text(rate)} ({interval_text(rate)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return NOTHING
    return f"{value:.2%}" if metric in _SHARES else f"{value:,.4g}"


def _tables(conditions: list[_Condition]) -> list[list[_Condition]]:
    """Neighbours of one section that have the same figures make one table."""
    tables: list[list[_Condition]] = []
    for one in conditions:
        last = tables[-1][0] if tables else None
        same = (
            last is not None and last.section == one.section and [*last.figures] == [*one.figures]
        )
        if same:
            tables[-1].append(one)
        else:
            tables.append([one])
    return tables


def _table(alike: list[_Condition], title: str | None) -> Table:
    metrics = list(alike[0].figures)
    if len(alike) == 1 and len(metrics) > MOST_COLUMNS:
        table = Table("figure", escape(alike[0].name) or "value", title=title)
        for metric in metrics:
            table.add_row(_heading(metric), escape(alike[0].figures[metric]))
        return table
    names = any(one.name for one in alike)
    table = Table(*(["of"] if names else []), *map(_heading, metrics), title=title)
    for one in alike:
        first = [escape(one.name)] if names else []
        table.add_row(*first, *(escape(one.figures[metric]) for metric in metrics))
    return table


def _heading(metric: str) -> str:
    return metric.replace("_", " ")


def _print_problems(evaluation: Evaluation) -> None:
    for data in evaluation.data:
        shown = [problem for problem in data.problems if problem.code != "one_photo"]
        for problem in shown[:SHOWN_PROBLEMS]:
            out.print(f"  {problem.image}: {problem.code}", markup=False, highlight=False)
        if len(shown) > SHOWN_PROBLEMS:
            out.print(f"  … and {len(shown) - SHOWN_PROBLEMS} more; --json lists all.")
