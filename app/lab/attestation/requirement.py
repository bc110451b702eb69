"""Requirements on error rates, and whether the counted errors meet them."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.special import betaincinv

from app.findings import findings
from app.lab.attestation.document import AttestationError

Limit = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
MAX_BYTES = 64 * 1024


class Requirement(BaseModel):
    """Limits that each group and stratum has to keep.

    `gallery_share`: the gallery that is searched must hold at least that share of the persons whom
    the service holds, or is meant to hold (`gallery_persons`). `confidence`: of the one-sided bound
    that must are below a limit. `attributes` must be among the groups that are given; with
    `by_group` there must be one. `strata` must have been measured; all measured strata are compared
    with the limits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    fpir: Limit
    fnir: Limit | None = None
    gallery_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.9
    gallery_persons: Annotated[int, Field(ge=1, strict=True)] | None = None
    confidence: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.95
    by_group: bool = True
    attributes: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()


# NIST SP 800-63A-4 (2025), section 3.11: 1:N searches have an FPIR of 1:1,000 or less for each
# demographic group, shown with a gallery of at least 90 % of the current or intended size.
NAMED: Mapping[str, Requirement] = {
    "sp800-63a-4": Requirement(name="NIST SP 800-63A-4, 1:N", fpir=0.001, gallery_share=0.9)
}


def find_requirement(name_or_path: str) -> Requirement:
    """A requirement by its name, or from a TOML file. Raises AttestationError."""
    if name_or_path in NAMED:
        return NAMED[name_or_path]
    path = Path(name_or_path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AttestationError(
            f"{name_or_path} is neither a named requirement ({', '.join(NAMED)}) nor a file that "
            f"can be read: {reason}."
        ) from error
    if len(content) > MAX_BYTES:
        raise AttestationError(
            f"{path} has more than {MAX_BYTES:,} bytes, so it is not a requirement."
        )
    try:
        return Requirement.model_validate(tomllib.loads(content.decode("utf-8")))
    except ValidationError as error:
        found = "; ".join(f"{place}: {said}" for place, said in findings(error.errors()))
        raise AttestationError(f"The requirement {path} is not valid. {found}.") from error
    except (ValueError, RecursionError) as error:
        raise AttestationError(f"{path} is not TOML: {error}") from error


# Beyond so many the measured rate is too near the limit for a number to be of use.
MOST_NEEDED = 1_000_000


class RequirementOutcome(StrEnum):
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
class LimitDecision:
    """Whether a rate keeps a limit: the one-sided exact bounds (Clopper & Pearson, 1934) of the
    rate, and how many people would decide it if the rate stayed as it is; None where a million
    would not."""

    outcome: RequirementOutcome
    low: float
    high: float
    people_needed: int | None


def decide(counted: Counted, limit: float, confidence: float) -> LimitDecision:
    """Pass where the upper bound is at most the limit, fail where the lower is above it."""
    rate, trials = counted.rate or 0.0, counted.effective
    low, high = bounds(rate, trials, confidence)
    if high <= limit:
        return LimitDecision(RequirementOutcome.PASS, low, high, None)
    if low > limit:
        return LimitDecision(RequirementOutcome.FAIL, low, high, None)
    needed = trials_needed(rate, limit, confidence)
    each = counted.searches / trials if trials else 1.0
    people = None if needed is None else math.ceil(needed * each)
    return LimitDecision(RequirementOutcome.UNDECIDED, low, high, people)


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


def worst(outcomes: Sequence[RequirementOutcome]) -> RequirementOutcome:
    """Fail if anything fails, pass only if everything passes, and there is something to decide."""
    if RequirementOutcome.FAIL in outcomes:
        return RequirementOutcome.FAIL
    if not outcomes or RequirementOutcome.UNDECIDED in outcomes:
        return RequirementOutcome.UNDECIDED
    return RequirementOutcome.PASS
