"""Intervals against published values and against simulation."""

import numpy as np
import pytest

from app.decision.rates import RateCurve, clopper_pearson, dyadic_variance, effective_trials


def interval(errors: float, trials: float) -> tuple[float, float]:
    low, high = clopper_pearson(np.array([errors]), np.array([trials]))
    return float(low[0]), float(high[0])


@pytest.mark.parametrize(
    ("errors", "trials", "low", "high"),
    [(1, 10, 0.0025, 0.4450), (5, 100, 0.0164, 0.1128), (50, 100, 0.3983, 0.6017)],
)
def test_clopper_pearson_of_tables(errors: int, trials: int, low: float, high: float) -> None:
    assert interval(errors, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("trials", [100, 1000, 1_000_000])
def test_rule_of_three(trials: int) -> None:
    low, high = interval(0, trials)
    assert low == 0.0
    assert high == pytest.approx(3 / trials, rel=0.02)


def test_nothing_but_errors() -> None:
    low, high = interval(100, 100)
    assert high == 1.0
    assert low == pytest.approx(1 - 3 / 100, rel=0.01)


def test_fractions_of_trials_lie_between_their_neighbours() -> None:
    assert interval(2, 100)[1] < interval(2.5, 100)[1] < interval(3, 100)[1]


def test_effective_trials_of_independent_ones_are_their_number() -> None:
    rate = np.array([0.02])
    assert effective_trials(rate, rate * (1 - rate) / 500) == pytest.approx([500])
    assert effective_trials(rate, np.array([0.0]))[0] == np.inf


def test_dyadic_variance_knows_that_pairs_share_people() -> None:
    """Some people resemble many: the standard error of the mean equals its spread over repeated
    draws, and far larger than if all pairs were independent."""
    generator = np.random.default_rng(1)
    people, estimates, variances, naive = 60, [], [], []
    pairs = people * (people - 1) / 2
    for _ in range(400):
        look_alike = generator.random(people) ** 4
        chance = 0.8 * np.sqrt(np.outer(look_alike, look_alike))
        matches = np.triu(generator.random((people, people)) < chance, 1)
        matches = (matches | matches.T).astype(float)
        sums = matches.sum(axis=1)[:, np.newaxis]
        rate = np.array([sums.sum() / 2 / pairs])
        trials = np.full(people, people - 1.0)
        variance = dyadic_variance(rate, sums, trials, sums.sum(axis=0) / 2, pairs)
        estimates.append(rate[0])
        variances.append(variance[0])
        naive.append(rate[0] * (1 - rate[0]) / pairs)
    true = float(np.var(estimates))
    assert float(np.mean(variances)) == pytest.approx(true, rel=0.2)
    assert float(np.mean(naive)) < true / 3


SIMILARITIES = (-0.2, 0.1, 0.15, 0.4, 0.9)


@pytest.mark.parametrize("similarity", [-1.0, -0.2, 0.0, 0.1, 0.12, 0.8999, 0.9, 1.0])
def test_a_curve_interpolates_logarithms_as_numpy(similarity: float) -> None:
    rates = [1.0, 0.3, 0.3, 1e-5, 0.0]
    logarithms = np.log(np.maximum(rates, 1e-15))
    expected = np.exp(np.interp(similarity, SIMILARITIES, logarithms))
    assert RateCurve(SIMILARITIES, rates).at(similarity) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("rate", [2.0, 1.0, 0.5, 0.3, 0.1, 0.02, 1e-5])
def test_the_similarity_of_a_rate_is_found_where_the_curve_stays_below_it(rate: float) -> None:
    rates = np.array([1.0, 0.02, 0.3, 1e-3, 1e-5])  # sampled: it may rise a little
    falling = np.minimum.accumulate(np.log(rates))
    expected = np.interp(-np.log(rate), -falling, SIMILARITIES)
    assert RateCurve(SIMILARITIES, rates).similarity_of(rate) == pytest.approx(expected, rel=1e-14)


def test_a_rate_of_zero_is_not_interpolated() -> None:
    """A target below the last rate that was counted is not reached before it is."""
    curve = RateCurve([0.1, 0.2, 0.3], [1e-2, 1e-3, 0.0])
    assert curve.similarity_of(1e-5) == 0.3
    assert curve.similarity_of(1e-3) == 0.2
