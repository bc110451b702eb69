"""By which direction the faces of a folder of labelled people are compared, and the thresholds of
its figures."""

from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.decision.domain import SharedDirection
from app.decision.fitting import MIN_PERSONS
from app.decision.policy import CollectionPolicy
from app.decision.thresholds import ONE_COMPARISON
from app.faces.pipeline import FacePipeline
from app.inference.pack_spec import ModelPack
from app.lab.evaluation.labels import LabelledPeople
from app.lab.evaluation.people import _thresholds, fit_direction
from app.lab.evaluation.protocol import Analyser, Bench, EvaluationPlan, Tick
from tests.decision.test_calibration import CONTENT, SHARED, calibration

TARGET = CollectionPolicy().target_fmr


def test_the_thresholds_are_the_calibration_s(pack: ModelPack) -> None:
    made = calibration()
    wanted = made.threshold_at(TARGET, ONE_COMPARISON)
    found = _thresholds(CollectionPolicy(), made, (), None, pack)
    assert found == pytest.approx((wanted, wanted))


def test_a_calibration_that_does_not_reach_the_target_leaves_the_pack_s(pack: ModelPack) -> None:
    short = {key: CONTENT["fmr"][key][:3] for key in ("similarity", "rate", "low", "high")}
    made = calibration(fmr={**short, "variation": [0.0] * 3, "measured": 3})
    assert made.lowest_fmr > TARGET
    found = _thresholds(CollectionPolicy(), made, (), None, pack)
    assert found == (pack.decision.threshold, pack.decision.threshold)


@pytest.mark.parametrize("count", [MIN_PERSONS - 1, MIN_PERSONS])
def test_too_few_faces_leave_the_pack_s_direction(
    pack: ModelPack, pipeline: FacePipeline, tmp_path: Path, count: int
) -> None:
    """Too few people, or photos of which none can be used."""

    def progress(title: str, total: int) -> AbstractContextManager[Tick]:
        return nullcontext(lambda: None)

    shared = SharedDirection.model_validate(SHARED)
    clock = lambda: datetime.now(UTC)  # noqa: E731
    bench = Bench(pack, Analyser(pipeline), progress, clock, None, shared)
    people = LabelledPeople(
        tmp_path, tuple(f"{n}/a.jpg" for n in range(count)), tuple(map(str, range(count)))
    )
    assert fit_direction(EvaluationPlan(people), people, bench) is bench
