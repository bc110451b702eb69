"""Error rates of hand-made similarities whose answers are known."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from app.lab.evaluation.metrics import (
    equal_error_rate,
    fnmr_at_fmr,
    most_accurate_threshold,
    operating_point,
    point_at_fmr,
    ten_fold_accuracy,
)

Arrays = tuple[NDArray[np.float64], NDArray[np.bool_]]


def pairs(mated: list[float], others: list[float]) -> Arrays:
    similarities = np.array(mated + others)
    return similarities, np.arange(len(similarities)) < len(mated)


def separated(count: int = 20) -> Arrays:
    return pairs([0.8] * count, [0.1] * count)


def test_separated_pairs_are_decided_without_error() -> None:
    accuracy = ten_fold_accuracy(*separated())
    assert (accuracy.mean, accuracy.std) == (1.0, 0.0)
    assert accuracy.thresholds == pytest.approx([0.45] * 10)
    assert equal_error_rate(*separated()).rate == 0.0
    assert point_at_fmr(*separated(), 0.01).fnmr.value == 0.0


def test_equal_similarities_are_a_coin_flip() -> None:
    similarities, same = pairs([0.5] * 20, [0.5] * 20)
    assert ten_fold_accuracy(similarities, same).mean == 0.5
    assert equal_error_rate(similarities, same).rate == 0.5
    assert point_at_fmr(similarities, same, 0.1).fnmr.value == 1.0


def test_one_error_costs_its_fold_one_pair() -> None:
    similarities, same = pairs([0.0] + [0.8] * 19, [0.1] * 20)
    accuracy = ten_fold_accuracy(similarities, same)
    assert accuracy.mean == pytest.approx(1 - 0.25 / 10)  # one of four pairs in one of ten folds
    assert accuracy.std == pytest.approx(np.std([0.75] + [1.0] * 9))


def test_the_tenth_fold_does_not_choose_its_own_threshold() -> None:
    # The last fold's non-mates lie above the first mates: only that fold knows of them.
    similarities, same = pairs([0.5] * 18 + [0.9] * 2, [0.1] * 18 + [0.6] * 2)
    assert ten_fold_accuracy(similarities, same).mean == pytest.approx(1 - 0.5 / 10)


def test_folds_hold_both_kinds_however_the_pairs_are_ordered() -> None:
    similarities, same = separated()
    order = np.random.default_rng(seed=5).permutation(len(same))
    assert ten_fold_accuracy(similarities[order], same[order]).mean == 1.0


@pytest.mark.parametrize(("mated", "others"), [(9, 20), (20, 9), (0, 20)])
def test_ten_folds_need_ten_pairs_of_each_kind(mated: int, others: int) -> None:
    with pytest.raises(ValueError, match="10 mated and 10 non-mated"):
        ten_fold_accuracy(*pairs([0.9] * mated, [0.1] * others))


def test_threshold_lies_in_the_middle_of_its_gap() -> None:
    assert most_accurate_threshold(*pairs([0.9, 0.7], [0.3, 0.1])) == pytest.approx(0.5)


def test_threshold_never_splits_equal_similarities() -> None:
    threshold = most_accurate_threshold(*pairs([0.9, 0.5, 0.5], [0.5, 0.2]))
    assert threshold == pytest.approx(0.35)


def test_threshold_where_accepting_all_or_none_is_best() -> None:
    assert most_accurate_threshold(*pairs([0.1, 0.2, 0.3], [0.9])) == pytest.approx(0.1)
    nobody = most_accurate_threshold(*pairs([0.1], [0.9, 0.8, 0.7]))
    assert nobody == math.nextafter(0.9, math.inf)


def test_neighbouring_float32_similarities_can_be_distinguished() -> None:
    low = np.float32(0.5)
    high = np.nextafter(low, np.float32(1))
    similarities = np.array([high] * 20 + [low] * 20, dtype=np.float32)
    same = np.arange(40) < 20
    assert ten_fold_accuracy(similarities, same).mean == 1.0
    assert point_at_fmr(similarities, same, 0.01).fnmr.value == 0.0


def test_the_threshold_for_a_fmr_lets_just_the_allowed_non_mates_match() -> None:
    others = [i / 1000 for i in range(100)]  # 0.000 ... 0.099
    mated = [0.0975, 0.0985, 0.5, 0.6]
    one, ten, none = (point_at_fmr(*pairs(mated, others), fmr) for fmr in (0.01, 0.1, 0.001))
    assert (one.false_matches, one.fmr.value, one.fnmr.value) == (1, 0.01, 0.25)
    assert 0.098 < one.threshold < 0.0985
    assert (ten.false_matches, ten.fnmr.value) == (10, 0.0)
    assert (none.false_matches, none.fmr.value, none.fnmr.value) == (0, 0.0, 0.5)


def test_a_fmr_that_the_pairs_are_too_few_for_is_not_reported() -> None:
    """Three false matches at least must be expected: 262 pairs tell nothing of 1e-3."""
    few = pairs([0.9] * 10, [i / 1000 for i in range(262)])
    assert [point.target_fmr for point in fnmr_at_fmr(*few, [0.1, 0.0115, 0.01, 0.001])] == [
        0.1,
        0.0115,
    ]
    assert fnmr_at_fmr(*pairs([0.9] * 10, [0.1] * 3000))[1].target_fmr == 0.001


def test_rates_come_with_exact_binomial_intervals() -> None:
    point = point_at_fmr(*pairs([0.9] * 97 + [0.0] * 3, [0.5] * 100), 0.1)
    assert (point.fmr.value, point.fmr.low) == (0.0, 0.0)
    assert point.fmr.high == pytest.approx(0.0295, abs=1e-4)  # 1 - 0.05 ** (1 / 100)
    assert (point.fnmr.low, point.fnmr.high) == pytest.approx((0.0062, 0.0852), abs=1e-4)
    crossing = equal_error_rate(*pairs([0.9] * 50, [0.1] * 20))
    assert crossing.interval.high == pytest.approx(1 - 0.05 ** (1 / 20))


def test_ties_stay_below_the_rate() -> None:
    point = point_at_fmr(*pairs([0.6, 0.4], [0.4] * 50 + [0.1] * 50), 0.2)
    assert (point.fmr.value, point.fnmr.value) == (0.0, 0.5)


def test_rounding_does_not_lose_an_allowed_non_mate() -> None:
    others = [i / 1000 for i in range(100)]
    assert point_at_fmr(*pairs([1.0], others), 0.29).false_matches == 29


def test_at_a_fmr_of_one_everything_matches() -> None:
    point = point_at_fmr(*pairs([0.9], [0.1, 0.2]), 1.0)
    assert (point.fmr.value, point.fnmr.value, point.threshold) == (1.0, 0.0, 0.1)


def test_eer_lies_where_the_rates_cross() -> None:
    mated = [0.2] + [0.9] * 9  # one in ten below every threshold worth having
    others = [0.8] + [0.1] * 9
    crossing = equal_error_rate(*pairs(mated, others))
    assert crossing.rate == pytest.approx(0.1)
    assert 0.2 < crossing.threshold <= 0.8


def test_operating_point_counts_the_threshold_itself_as_a_match() -> None:
    point = operating_point(*pairs([0.5, 0.4], [0.5, 0.1, 0.1, 0.1]), threshold=0.5)
    assert (point.fmr.value, point.fnmr.value, point.false_matches) == (0.25, 0.5, 1)


@pytest.mark.parametrize("kinds", [([0.5], []), ([], [0.5])])
def test_rates_need_both_kinds(kinds: tuple[list[float], list[float]]) -> None:
    similarities, same = pairs(*kinds)
    for rate in (equal_error_rate, fnmr_at_fmr):
        with pytest.raises(ValueError, match="mated and non-mated"):
            rate(similarities, same)
