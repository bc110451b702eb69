"""From counted errors to pass, fail, or not to be decided from this data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy.special import betaincinv

# Beyond so many the measured rate is too near the limit for a number to be of use.
MOST_NEEDED = 1_000_000


class Outcome(StrEnum):
    """Of a limit, or of a whole requirement."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Counted:
    """Errors among searches of different people. `effective`: as how many independent searches
    they count, which is fewer where one false match is an error of two searches."""

    errors: int
    searches: int
    effective: float

    @property
    def rate(self) -> float | None:
        """Errors a search; None without one."""
        return self.errors / self.searches if self.searches else None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a rate keeps a limit: the one-sided exact bounds (Clopper & Pearson, 1934) of the
    rate, and how many people would decide it if the rate stayed as it is; None where a million
    would not."""

    outcome: Outcome
    low: float
    high: float
    people_needed: int | None


def judge(counted: Counted, limit: float, confidence: float) -> Judgement:
    """Pass where the upper bound is at most the limit, fail where the lower is above it."""
    rate, trials = counted.rate or 0.0, counted.effective
    low, high = bounds(rate, trials, confidence)
    if high <= limit:
        return Judgement(Outcome.PASS, low, high, None)
    if low > limit:
        return Judgement(Outcome.FAIL, low, high, None)
    needed = trials_needed(rate, limit, confidence)
    each = counted.searches / trials if trials else 1.0
    people = None if needed is None else math.ceil(needed * each)
    return Judgement(Outcome.UNDECIDED, low, high, people)


def bounds(rate: float, trials: float, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper bound of a rate seen in so many independent trials."""
    if trials <= 0:
        return 0.0, 1.0
    errors = rate * trials
    low = 0.0 if errors <= 0 else float(betaincinv(errors, trials - errors + 1, 1 - confidence))
    high = 1.0 if rate >= 1 else float(betaincinv(errors + 1, trials - errors, confidence))
    return low, high


def trials_needed(rate: float, limit: float, confidence: float) -> int | None:
    """With how many trials the rate, if it stays what it is, passes or fails for certain."""

    def decided(trials: int) -> bool:
        low, high = bounds(rate, float(trials), confidence)
        return high <= limit or low > limit

    if not decided(MOST_NEEDED):
        return None
    low, high = 1, MOST_NEEDED
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle + 1, high)
    return low


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Fail if anything fails, pass only if everything passes, and something was judged."""
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    if not outcomes or Outcome.UNDECIDED in outcomes:
        return Outcome.UNDECIDED
    return Outcome.PASS
