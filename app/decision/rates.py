"""Error rates and how sure they are, where comparisons share people."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
_TINY = 1e-15


@dataclass(frozen=True, slots=True)
class Rate:
    """An error rate with its 95 % confidence interval; `extrapolated` beyond what was counted."""

    value: float
    low: float
    high: float
    extrapolated: bool = False


class RateCurve:
    """Rates (T,) at similarities (T,) that rise; the logarithms are interpolated. In Python: for
    one similarity at a time NumPy takes several times as long."""

    def __init__(self, similarities: Sequence[float], rates: Sequence[float] | Floats) -> None:
        self.rates = np.asarray(rates, np.float64)
        self._similarities = similarities
        self._logarithms: list[float] = np.log(np.maximum(self.rates, _TINY)).tolist()

    def at(self, similarity: float) -> float:
        """The rate at a similarity; beyond an end of the curve that at the end."""
        return math.exp(_interpolated(similarity, self._similarities, self._logarithms))

    def similarity_of(self, rate: float) -> float:
        """The lowest similarity from which on the curve stays at or below a rate (> 0); at the
        last row at the latest. Between a rate and 0 nothing is interpolated: that of 0 counts."""
        return _interpolated(-math.log(rate), self._falling, self._similarities)

    @cached_property
    def _falling(self) -> list[float]:
        """Minus the logarithms of the lowest rates so far: they rise, or stay."""
        with np.errstate(divide="ignore"):
            lowest: list[float] = (-np.minimum.accumulate(np.log(self.rates))).tolist()
        return lowest


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """`numpy.interp` for one number."""
    before = bisect_right(xs, x) - 1
    if before < 0:
        return ys[0]
    if before >= len(xs) - 1:
        return ys[before]
    if x > xs[before] and math.isinf(xs[before + 1]):
        return ys[before + 1]
    slope = (ys[before + 1] - ys[before]) / (xs[before + 1] - xs[before])
    return slope * (x - xs[before]) + ys[before]


def clopper_pearson(
    errors: NDArray[np.floating], trials: NDArray[np.floating], confidence: float = CONFIDENCE
) -> tuple[Floats, Floats]:
    """The exact binomial interval of errors / trials, elementwise (Clopper & Pearson, 1934).

    Both may be fractions: counts reduced to an effective size (see `effective_trials`). Without
    an error the interval is one-sided and its upper end is the rule of three, 3 / trials at 95 %
    (Jovanovic & Levy, 1997); without a success, likewise from below.
    """
    from scipy.special import betaincinv  # noqa: PLC0415 (see `services.import_scipy`)

    k, n = np.broadcast_arrays(
        np.asarray(errors, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    )
    alpha = 1.0 - confidence
    none, all_ = k <= 0, k >= n
    with np.errstate(invalid="ignore"):
        low = betaincinv(np.maximum(k, 1e-12), n - k + 1, np.where(all_, alpha, alpha / 2))
        high = betaincinv(k + 1, np.maximum(n - k, 1e-12), 1 - np.where(none, alpha, alpha / 2))
    return np.where(none, 0.0, low), np.where(all_, 1.0, high)


def effective_trials(rate: NDArray[np.floating], variance: NDArray[np.floating]) -> Floats:
    """How many independent trials would know the rate as well: rate (1 - rate) / variance.

    The design-based use of the binomial interval (Korn & Graubard, Survey Methodology 1998).
    Infinite where there is no variance.
    """
    rate = np.asarray(rate, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(variance > 0, rate * (1 - rate) / variance, np.inf))


def dyadic_variance(
    rate: Floats, sums: Floats, trials: Floats, squares: Floats, pairs: float
) -> Floats:
    """Variance of a mean over pairs of people that share people, for T thresholds at once.

    rate (T,): the mean of x over `pairs` pairs; sums (P, T): for each person the sum of x over
    their pairs; trials (P,): how many pairs that is; squares (T,): the sum of x squared.

    This is the jackknife that leaves out one person at a time, in closed form, with what belongs
    to a single pair counted once (Aronow, Samii & Assenova, "Cluster-robust variance estimation
    for dyadic data", Political Analysis 2015).
    """
    by_person = sums - rate[np.newaxis] * trials[:, np.newaxis]
    own = np.maximum(squares - rate**2 * pairs, 0.0)
    total = (by_person**2).sum(axis=0) - own
    return np.asarray(np.maximum(total, own) / pairs**2, np.float64)
