"""Charts as SVG: well-formed, named, alike each time, with ids that do not meet on one page."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import pytest

from app.decision.rates import Rate
from app.lab.evaluation import charts
from app.lab.evaluation.figure_rows import document_of, rows_of
from app.lab.evaluation.figures import DiscardFigures, FpirPrediction, Histogram, Series
from tests.lab.evaluation.figures_for_tests import complete_evaluation

pytestmark = pytest.mark.slow

SVG = "{http://www.w3.org/2000/svg}"


def document(**changed: Any) -> dict[str, Any]:
    """What charts are made of."""
    return document_of(rows_of(replace(complete_evaluation(), **changed)))


def all_charts() -> list[str]:
    evaluation = document()
    drawn = [
        charts.comparison_det(evaluation["comparisons"]),
        charts.comparison_roc(evaluation["comparisons"]["roc"]),
        charts.score_histogram(evaluation["comparisons"]["histogram"], 0.4),
        charts.identification_det(evaluation["identification"]),
        charts.error_versus_discard(evaluation["discard"]),
        charts.predicted_fpir(evaluation["predictions"]),
    ]
    return [svg for svg in drawn if svg is not None]


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    return all_charts()


def texts(svg: str) -> set[str]:
    return {element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")}


def test_every_chart_is_one_svg_element_that_scales(drawn: list[str]) -> None:
    assert len(drawn) == 6
    for svg in drawn:
        root = ET.fromstring(svg)
        assert root.tag == f"{SVG}svg"
        assert svg.startswith("<svg ")  # no XML declaration, no DOCTYPE: it goes into a page
        assert "viewBox" in root.attrib
        assert not {"width", "height"} & set(root.attrib)


def test_every_chart_has_a_name_and_a_description(drawn: list[str]) -> None:
    for svg in drawn:
        root = ET.fromstring(svg)
        by_id = {element.get("id"): element for element in root.iter()}
        title, summary = (by_id[name] for name in root.attrib["aria-labelledby"].split())
        assert root.get("role") == "img"
        assert (title.tag, summary.tag) == (f"{SVG}title", f"{SVG}desc")
        assert title.text
        assert summary.text


def test_charts_on_one_page_share_no_id(drawn: list[str]) -> None:
    ids = [element.get("id") for svg in drawn for element in ET.fromstring(svg).iter()]
    named = [name for name in ids if name is not None]
    assert len(named) == len(set(named))


def test_references_stay_within_their_chart(drawn: list[str]) -> None:
    for svg in drawn:
        ids = {element.get("id") for element in ET.fromstring(svg).iter()}
        referred = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
        assert referred
        assert set(referred) <= ids


def test_charts_reach_outside_neither_the_page_nor_their_own_style(drawn: list[str]) -> None:
    for svg in drawn:
        assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
        assert "<style" not in svg
        assert "<metadata" not in svg


def test_the_same_figures_give_the_same_text(drawn: list[str]) -> None:
    assert all_charts() == drawn


def test_drawing_leaves_settings_alone_and_takes_none_of_them() -> None:
    evaluation = document()
    expected = charts.identification_det(evaluation["identification"])
    with mpl.rc_context({"lines.linewidth": 9.0, "svg.hashsalt": "mine"}):
        before = dict(mpl.rcParams)
        assert charts.identification_det(evaluation["identification"]) == expected
        assert dict(mpl.rcParams) == before


def test_ink_and_colours_follow_the_page(drawn: list[str]) -> None:
    for svg in drawn:
        assert "currentColor" in svg
        assert "#000000" not in svg
        assert "var(--chart-1, #0072b2)" in svg


def test_axes_are_whole_decades_in_words_that_can_be_read(drawn: list[str]) -> None:
    assert {"1e-6", "0.01 %", "1 %", "100 %"} <= texts(drawn[0])


def test_axes_of_shares_end_at_100_per_cent(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    finish = charts.Chart.svg

    def svg(chart: charts.Chart) -> str:
        limits.extend(
            axis.get_view_interval().max()
            for axis in (chart.axes.xaxis, chart.axes.yaxis)
            if "%" in axis.get_major_formatter()(0.5, 0)
        )
        return finish(chart)

    monkeypatch.setattr(charts.Chart, "svg", svg)
    all_charts()
    assert len(limits) == 10
    assert max(limits) == 1.0
    bad = DiscardFigures("sharpness", 0.4, (0.0, 0.2), (1.0, 0.99), 0.01)
    charts.error_versus_discard(document(discard=(bad,))["discard"])
    assert max(limits) == 1.0


def test_labels_are_text_and_not_markup_or_tex() -> None:
    measure = "_<b>$\\frac{$ & \x07"
    curve = DiscardFigures(measure, 0.4, (0.0, 0.1), (0.02, 0.01), 0.2)
    svg = charts.error_versus_discard(document(discard=(curve,))["discard"])
    assert svg is not None
    assert "_<b>$\\frac{$ & " in texts(svg)
    assert "<b>" not in svg


def test_a_line_a_gallery_size() -> None:
    svg = charts.identification_det(document()["identification"])
    assert svg is not None
    assert {"100 persons", "1,000 persons"} <= texts(svg)


def test_rates_of_zero_have_no_place_on_a_logarithmic_axis() -> None:
    figures = complete_evaluation().comparisons
    assert figures is not None
    flat = Series((1e-3, 1e-2, 0.0), (0.0, math.nan, 0.1))
    flattened = document(comparisons=replace(figures, det=flat))["comparisons"]
    assert charts.comparison_det(flattened) is None


def test_a_prediction_of_no_error_is_drawn_by_the_end_of_its_interval() -> None:
    none = FpirPrediction(100, 1, 1e-2, 0.4, Rate(0.0, 0.0, 0.015), held_out=True)
    svg = charts.predicted_fpir(document(predictions=(none,))["predictions"])
    assert svg is not None
    assert "100 persons × 1" in texts(svg)


def test_only_predictions_for_unseen_people_are_drawn_where_there_are_some() -> None:
    svg = charts.predicted_fpir(document()["predictions"])
    assert svg is not None
    assert "1,000 persons × 3" not in texts(svg)


def test_the_threshold_stands_in_the_histogram() -> None:
    histogram = document()["comparisons"]["histogram"]
    with_line = charts.score_histogram(histogram, 0.4, "pack")
    without = charts.score_histogram(histogram)
    assert with_line is not None
    assert without is not None
    assert "pack 0.400" in texts(with_line)
    assert "pack 0.400" not in texts(without)


def test_nothing_to_draw_is_no_chart() -> None:
    assert charts.identification_det([]) is None
    assert charts.error_versus_discard([]) is None
    assert charts.predicted_fpir([]) is None
    assert charts.score_histogram(Histogram((), (), ())) is None
