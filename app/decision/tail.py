"""Beyond what was counted: a generalised Pareto tail of the non-mated similarities.

Peaks over a threshold (Pickands, 1975; Davison & Smith, 1990): above a high similarity u, the
excess y has the survival (1 + shape * y / scale) ** (-1 / shape).
"""

from dataclasses import dataclass

import numpy as np

from app.decision.comparisons import NonMatedPairs
from app.decision.rates import Floats

GROUPS = 20
# Student's t for a 95 % interval with GROUPS - 1 degrees of freedom.
T_QUANTILE = 2.093
MIN_EXCESSES = 50


@dataclass(frozen=True, slots=True)
class Tail:
    """A fitted tail: `rate` is the share of pairs of people above `start`."""

    start: float
    rate: float
    scale: float
    shape: float

    def rate_at(self, similarity: float) -> float:
        """Expected share of pairs of people at or above a similarity; 0 beyond the tail's end."""
        excess = similarity - self.start
        if abs(self.shape) < 1e-6:
            return float(self.rate * np.exp(-excess / self.scale))
        base = 1.0 + self.shape * excess / self.scale
        return float(self.rate * base ** (-1.0 / self.shape)) if base > 0 else 0.0

    def similarity_at(self, rate: float) -> float:
        """The similarity that a share of pairs of people reaches."""
        if abs(self.shape) < 1e-6:
            return float(self.start + self.scale * np.log(self.rate / rate))
        return float(
            self.start + self.scale / self.shape * ((rate / self.rate) ** -self.shape - 1.0)
        )


def fit_tail(top: NonMatedPairs, pairs: float) -> Tail | None:
    """Fit by maximum likelihood to the most similar of `pairs` pairs of people, weighted.

    None with fewer than MIN_EXCESSES comparisons: a tail fitted to less means nothing.
    """
    if len(top.similarities) < MIN_EXCESSES:
        return None
    start = float(top.similarities[-1])
    excess = top.similarities.astype(np.float64) - start + 1e-9
    weights = top.weights / top.weights.mean()
    mean = float(np.average(excess, weights=weights))

    from scipy.optimize import minimize  # noqa: PLC0415 (only a calibration needs it)

    def loss(parameters: Floats) -> float:
        scale, shape = np.exp(parameters[0]), parameters[1]
        base = 1.0 + shape * excess / scale
        if base.min() <= 0:
            return 1e300
        if abs(shape) < 1e-6:
            return float((weights * (parameters[0] + excess / scale)).sum())
        return float((weights * (parameters[0] + (1.0 + 1.0 / shape) * np.log(base))).sum())

    options = {"xatol": 1e-4, "fatol": 1e-4, "maxiter": 1000}
    # Non-mated similarities have thin tails; the start says so, the data may disagree.
    found = minimize(loss, [np.log(mean), -0.1], method="Nelder-Mead", options=options).x
    return Tail(start, float(top.weights.sum() / pairs), float(np.exp(found[0])), float(found[1]))


def log_rate_stderr(top: NonMatedPairs, pairs: float, people: int, similarities: Floats) -> Floats:
    """Standard error of the logarithm of the tail's rate at each similarity (n,).

    The tail is fitted GROUPS times, each time without a twentieth of the people and all
    their comparisons (delete-a-group jackknife; Kott, Journal of Official Statistics 2001).
    """
    group = np.arange(people) % GROUPS  # people are numbered in the order of their labels
    logs = []
    for left_out in range(GROUPS):
        kept = (group[top.persons_a] != left_out) & (group[top.persons_b] != left_out)
        remaining = int((group != left_out).sum())
        share = remaining * (remaining - 1) / (people * (people - 1))
        tail = fit_tail(top.take(kept), pairs * share)
        if tail is None:
            return np.full(len(similarities), np.inf)
        rates = np.array([tail.rate_at(similarity) for similarity in similarities])
        logs.append(np.log(np.maximum(rates, 1e-30)))
    deviations = np.array(logs) - np.mean(logs, axis=0)
    return np.asarray(np.sqrt((GROUPS - 1) / GROUPS * (deviations**2).sum(axis=0)))
