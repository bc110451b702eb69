"""The thresholds of the figures of a folder of labelled people."""

import pytest

from app.decision.policy import CollectionPolicy
from app.decision.thresholds import ONE_COMPARISON
from app.inference.pack_spec import ModelPack
from app.lab.evaluation.people import _thresholds
from tests.decision.test_calibration import CONTENT, calibration

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
