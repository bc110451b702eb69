"""JSON with everything, CSV with one figure per row."""

import csv
import io
import json
import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from app.decision.rates import Rate
from app.lab.evaluation.figure_rows import CSV_HEADER, document_of, rows_of, shown, to_csv, to_json
from app.lab.evaluation.figures import (
    Evaluation,
    FpirPrediction,
    Histogram,
    PhotoProblem,
    Series,
)
from tests.lab.evaluation.figures_for_tests import HOSTILE, complete_evaluation, minimal_evaluation


def loaded(evaluation: Evaluation) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(to_json(rows_of(evaluation)), parse_constant=refuse)


def rows(evaluation: Evaluation) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(rows_of(evaluation)), newline=""), strict=True))


def find(evaluation: Evaluation, section: str, condition: str, metric: str) -> dict[str, str]:
    key = (section, condition, metric)
    found = [r for r in rows(evaluation) if (r["section"], r["condition"], r["metric"]) == key]
    assert len(found) == 1, key
    return found[0]


def test_json_has_every_field_in_order() -> None:
    document = loaded(complete_evaluation())
    assert list(document) == [
        "verdict", "model", "created_at", "data", "timings", "pairs", "comparisons", "setting",
        "identification", "predictions", "scores", "discard", "groups", "detection",
    ]  # fmt: skip
    assert len(document["data"][0]["problems"]) == 250
    assert len(document["comparisons"]["det"]["x"]) == 200
    assert document["data"][0]["left_out"] == [HOSTILE]
    assert document["timings"]["stages_ms"] == {"decode": 4.25, "detect": 21.5, "embed": 88.0}


def test_json_has_what_is_computed() -> None:
    document = loaded(complete_evaluation())
    first, _, last = document["predictions"]
    assert first["error"] == pytest.approx(0.1)
    assert (first["kept"], last["kept"]) == (True, False)
    assert document["pairs"]["eer"]["interval"]["low"] < 0.0019
    assert document["detection"]["recall"][0]["recall"] == pytest.approx(0.98)


def test_json_has_null_for_what_is_no_finite_number() -> None:
    evaluation = complete_evaluation()
    nothing = FpirPrediction(1, 1, 0.1, math.inf, Rate(math.nan, 0.0, 1.0), held_out=False)
    document = loaded(replace(evaluation, predictions=(nothing,)))
    assert document["predictions"][0]["threshold"] is None
    assert document["predictions"][0]["simulated"]["value"] is None
    assert document["detection"]["recall"][2]["recall"] is None


def test_json_takes_numbers_of_numpy() -> None:
    rate = Rate(np.float32(0.5), np.float64(0.25), 1, np.bool_(True))  # type: ignore[arg-type]
    prediction = FpirPrediction(np.int64(7), 1, 0.1, 0.4, rate, held_out=True)  # type: ignore[arg-type]
    document = loaded(replace(minimal_evaluation(), predictions=(prediction,)))
    assert document["predictions"][0]["persons"] == 7
    assert document["predictions"][0]["simulated"] == {
        "value": 0.5, "low": 0.25, "high": 1, "extrapolated": True,
    }  # fmt: skip


def test_json_is_the_same_each_time() -> None:
    assert to_json(rows_of(complete_evaluation())) == to_json(rows_of(complete_evaluation()))


def test_csv_has_one_row_a_figure() -> None:
    evaluation = complete_evaluation()
    assert to_csv(rows_of(evaluation)).splitlines()[0] == ",".join(CSV_HEADER)
    keys = [(row["section"], row["condition"], row["metric"]) for row in rows(evaluation)]
    assert len(keys) == len(set(keys))
    assert {section for section, _, _ in keys} == {
        "verdict", "model", "data", "pairs", "comparisons", "setting", "identification",
        "predictions", "scores", "discard", "groups", "detection", "timings",
    }  # fmt: skip


def test_csv_has_rates_with_their_intervals() -> None:
    row = find(complete_evaluation(), "comparisons", "FMR=0.0001", "fnmr")
    assert (row["value"], row["low"], row["high"]) == ("0.0081", "0.006", "0.011")
    assert (
        find(complete_evaluation(), "identification", "persons=100", "rank_one")["low"] == "0.989"
    )


def test_csv_marks_what_is_extrapolated() -> None:
    evaluation = complete_evaluation()
    marked = [r["condition"] for r in rows(evaluation) if r["metric"] == "fmr_extrapolated"]
    assert marked == ["FMR=1e-08", "FMR=1e-09"]


def test_csv_has_no_row_for_a_rate_that_is_not_there_and_no_nan() -> None:
    evaluation = complete_evaluation()
    metrics = {r["metric"] for r in rows(evaluation) if r["condition"] == f"{HOSTILE}==cmd()"}
    assert metrics == {"people", "photos", "threshold"}
    empty = {r["metric"] for r in rows(evaluation) if r["condition"].endswith("9999 px")}
    assert empty == {"faces", "found"}
    assert "nan" not in to_csv(rows_of(evaluation))


def test_csv_counts_problems_by_code() -> None:
    evaluation = complete_evaluation()
    assert find(evaluation, "data", "lfw & friends", "problems_no_face")["value"] == "249"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_text_is_no_formula(start: str) -> None:
    evaluation = minimal_evaluation()
    data = replace(evaluation.data[0], name=f'{start}HYPERLINK("http://x","y")')
    found = {row["condition"] for row in rows(replace(evaluation, data=(data,)))}
    assert f"'{data.name}" in found
    assert not any(condition.startswith(start) for condition in found)


def test_csv_numbers_stay_numbers() -> None:
    evaluation = complete_evaluation()
    assert evaluation.pairs is not None
    pairs = replace(evaluation.pairs, eer=replace(evaluation.pairs.eer, threshold=-0.25))
    row = find(replace(evaluation, pairs=pairs), "pairs", "pairs.csv", "eer_threshold")
    assert row["value"] == "-0.25"


def test_csv_can_be_written_whatever_a_file_is_called() -> None:
    data = replace(minimal_evaluation().data[0], problems=(PhotoProblem("x", "odd\udcff"),))
    written = to_csv(rows_of(replace(minimal_evaluation(), data=(data,)))).encode("utf-8")
    assert b"problems_odd" in written


def test_csv_of_little_is_little() -> None:
    assert {row["section"] for row in rows(minimal_evaluation())} == {
        "verdict", "model", "data", "timings",
    }  # fmt: skip


def test_every_row_has_a_place_of_its_own() -> None:
    rows = list(rows_of(complete_evaluation()))
    paths = [row.path for row in rows if row.path]
    assert len(paths) == len(set(paths))
    assert {row.metric for row in rows if not row.path} == {
        "left_out", "problems_no_face", "problems_unreadable_image", "failures",
        "fnmr_of_all", "discarded", "fnmr_of_the_rest",
    }  # fmt: skip


def test_the_document_has_every_field_of_the_figures() -> None:
    """A field that is added to the figures becomes a row, and so reaches every output."""
    evaluation = complete_evaluation()

    def compare(figures: Any, part: Any) -> None:
        if isinstance(figures, Rate | Series | Histogram):
            assert part == figures
        elif is_dataclass(figures):
            for field in fields(figures):
                compare(getattr(figures, field.name), part[field.name])
        elif isinstance(figures, tuple) and figures and is_dataclass(figures[0]):
            for one, below in zip(figures, part, strict=True):
                compare(one, below)
        else:
            assert part == figures

    compare(evaluation, document_of(rows_of(evaluation)))


def test_a_field_of_the_figures_that_no_list_names_is_shown() -> None:
    setting = complete_evaluation().setting
    assert setting is not None
    shown_metrics = {
        row.metric for row in shown(rows_of(complete_evaluation())) if row.section == "setting"
    }
    assert shown_metrics == {field.name for field in fields(setting)}
