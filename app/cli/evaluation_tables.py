"""The tables of an evaluation on the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from app.cli.console import out
from app.lab.evaluation.rows import FigureRow, document_of
from app.lab.evaluation.tables import TITLES, FigureTable, tables_of

SHOWN_PROBLEMS = 10


def print_evaluation(rows: Sequence[FigureRow]) -> None:
    """The verdict, then every section that there is; the report has the curves and full lists."""
    document = document_of(rows)
    out.print(document["verdict"], style="bold", markup=False, highlight=False)
    section = ""
    for found in tables_of(rows):
        new = found.section != section
        section = found.section
        out.print(_table(found, TITLES[section] if new else None))
        if section == "data":
            _print_problems(document)


def _table(found: FigureTable, title: str | None) -> Table:
    if found.upright:
        ((name, cells),) = found.rows
        table = Table("figure", escape(name) or "value", title=title)
        for heading, cell in zip(found.headings, cells, strict=True):
            table.add_row(heading, escape(str(cell)))
        return table
    table = Table(*(["of"] if found.named else []), *found.headings, title=title)
    for name, cells in found.rows:
        first = [escape(name)] if found.named else []
        table.add_row(*first, *(escape(str(cell)) for cell in cells))
    return table


def _print_problems(document: dict[str, Any]) -> None:
    for data in document["data"]:
        shown = [problem for problem in data["problems"] if problem["code"] != "one_photo"]
        for problem in shown[:SHOWN_PROBLEMS]:
            out.print(f"  {problem['image']}: {problem['code']}", markup=False, highlight=False)
        if len(shown) > SHOWN_PROBLEMS:
            out.print(f"  … and {len(shown) - SHOWN_PROBLEMS} more; --json lists all.")
