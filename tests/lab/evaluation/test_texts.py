"""The verdict: two sentences for someone who does not read error rates."""

from dataclasses import replace

import pytest

from app.decision.rates import Rate
from app.lab.evaluation.figures import SettingFigures
from app.lab.evaluation.metrics import binomial, can_tell, least_trials
from app.lab.evaluation.texts import out_of, verdict
from tests.lab.evaluation.figures_for_tests import complete_evaluation, minimal_evaluation


def said(strangers: int, wrong: int, *, same: bool = False, target: float | None = 0.01) -> str:
    setting = SettingFigures(
        target, 0.58, "cal-7", same, 857, strangers, binomial(wrong / strangers, strangers),
        Rate(0.0706, 0.0544, 0.0898),
    )  # fmt: skip
    return verdict(replace(minimal_evaluation(), setting=setting))


def test_what_happens_to_strangers_and_to_own_people() -> None:
    assert said(2015, 20) == (
        "At the setting you run (FPIR 1 %, 857 people enrolled with one photo each), about 1 in "
        "100 strangers (95 % interval 0.6 to 1.5) would be taken for someone; about 7 in 100 of "
        "your own people (95 % interval 5 to 9) would not be recognised in one photo. That agrees "
        "with the promised 1 %; it rests on 2,015 strangers and 857 known people, and other "
        "cameras and people give other rates."
    )


def test_a_broken_promise_is_said_first() -> None:
    assert "That exceeds the promised 1 %" in said(2000, 76)
    assert "proves little" in said(2000, 20, same=True)


def test_what_the_data_cannot_tell_is_said_with_what_it_would_need() -> None:
    text = said(51, 0)
    assert "at most 6 in 100 strangers (none here) would be taken for someone" in text
    assert "cannot be decided from 51 strangers" in text
    assert "at least 300 strangers" in text


def test_a_pack_without_a_calibration_promises_nothing() -> None:
    assert "has no calibration" in said(500, 5, target=None)


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0.0, "none"), (0.07, "7 in 100"), (0.0103, "1 in 100"), (0.012, "1.2 in 100"),
     (0.0004, "4 in 10,000"), (1.0, "100 in 100"), (1e-9, "0 in 1,000,000")],
)  # fmt: skip
def test_shares_are_counts(rate: float, words: str) -> None:
    assert out_of(rate) == words


def test_every_kind_of_data_has_a_verdict_of_two_sentences() -> None:
    everything = complete_evaluation()
    for changed in (
        everything,
        replace(everything, setting=None),
        replace(everything, setting=None, pairs=None),
        minimal_evaluation(),
    ):
        text = verdict(changed)
        assert text.count(". ") == 1
        assert text.endswith(".")


def test_the_rule_of_three() -> None:
    assert can_tell(0.01, 300)
    assert not can_tell(0.01, 299)
    assert (least_trials(0.01), least_trials(0.003)) == (300, 1000)
