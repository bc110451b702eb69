"""JSON with everything, CSV with one figure a row."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from app.decision.rates import Rate
from app.lab.evaluation.csv_and_json import CSV_HEADER, to_csv, to_json
from app.lab.evaluation.figures import Evaluation, FpirPrediction, PhotoProblem
from app.lab.evaluation.rows import rows_of
from tests.lab.evaluation.figures_for_tests import HOSTILE, complete_evaluation, minimal_evaluation


def loaded(evaluation: Evaluation) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(to_json(evaluation), parse_constant=refuse)


def rows(evaluation: Evaluation) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(evaluation), newline=""), strict=True))


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
    assert to_json(complete_evaluation()) == to_json(complete_evaluation())


def test_csv_has_one_row_a_figure() -> None:
    evaluation = complete_evaluation()
    assert to_csv(evaluation).splitlines()[0] == ",".join(CSV_HEADER)
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
    assert "nan" not in to_csv(evaluation)


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
    written = to_csv(replace(minimal_evaluation(), data=(data,))).encode("utf-8")
    assert b"problems_odd" in written


def test_csv_of_little_is_little() -> None:
    assert {row["section"] for row in rows(minimal_evaluation())} == {
        "verdict", "model", "data", "timings",
    }  # fmt: skip


def test_rows_hold_no_figure_that_the_json_lacks() -> None:
    """Tables, report and CSV are made of the rows; the JSON has every field, so nothing differs."""
    evaluation = complete_evaluation()
    known = set(numbers_in(loaded(evaluation)))
    counted = {"left_out", "failures"}  # lists there
    for row in rows_of(evaluation):
        if isinstance(row.value, int | float) and math.isfinite(row.value):
            if row.metric in counted or row.metric.startswith("problems_"):
                continue
            assert float(row.value) in known, row


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(one)
    elif isinstance(value, int | float):
        yield float(value)
