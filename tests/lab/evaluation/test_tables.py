"""Tables of words, made of the rows."""

import itertools

import pytest

from app.decision.rates import Rate
from app.lab.evaluation.figure_rows import rows_of, shown
from app.lab.evaluation.tables import TITLES, TableCell, tables_of
from tests.lab.evaluation.figures_for_tests import complete_evaluation, minimal_evaluation
from tests.lab.evaluation.test_html import Page, no_photo, rendered


def test_every_row_has_one_cell() -> None:
    evaluation = complete_evaluation()
    rows = [row for row in shown(rows_of(evaluation)) if row.section in TITLES]
    cells = [cell for table in tables_of(rows) for _, row in table.rows for cell in row]
    assert len(cells) == len(rows)
    extrapolated = [row for row in rows if isinstance(row.value, Rate) and row.value.extrapolated]
    assert sum(cell.extrapolated for cell in cells) == len(extrapolated) > 0


@pytest.mark.slow
def test_the_report_shows_every_cell() -> None:
    evaluation = complete_evaluation()
    text = Page(rendered(evaluation, no_photo)).text
    for table in tables_of(rows_of(evaluation)):
        for name, row in table.rows:
            assert " ".join(name.split()) in text
            for cell in row:
                assert " ".join(f"{cell.text} {cell.interval}".split()) in text


def test_conditions_with_the_same_figures_make_one_table() -> None:
    tables = [
        table
        for table in tables_of(rows_of(complete_evaluation()))
        if table.section == "predictions"
    ]
    assert [len(table.rows) for table in tables] == [3]
    assert tables[0].headings == ("threshold", "simulated FPIR", "error", "kept")


def test_sections_stay_together_and_their_alike_conditions_too() -> None:
    tables = tables_of(rows_of(complete_evaluation()))
    sections = [table.section for table in tables]
    assert list(dict.fromkeys(sections)) == [one for one, _ in itertools.groupby(sections)]
    identification = [table for table in tables if table.section == "identification"]
    assert [len(table.rows) for table in identification] == [2, 4]


def test_many_figures_of_one_condition_stand_below_one_another() -> None:
    (model,) = [
        table for table in tables_of(rows_of(minimal_evaluation())) if table.section == "model"
    ]
    assert model.upright
    assert not model.named


def test_a_cell_in_one_line() -> None:
    assert (
        str(TableCell("1.2 %", "0.9–1.5 %", extrapolated=True)) == "1.2 % (0.9–1.5 %), extrapolated"
    )
    assert str(TableCell("12")) == "12"
