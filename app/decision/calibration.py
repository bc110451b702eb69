"""A calibration: what a similarity means in one embedding space, as a file and as answers.

`calibration.json` beside a pack's networks and the calibrations that collections make of themselves
have this one form. All slow work is done when it is made (`app.decision.fitting`); a decision only
looks values up in its tables.
"""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.decision.domain import Domain, Orientation
from app.decision.rates import Floats, Rate, RateCurve
from app.errors import CalibrationMismatch, RateOutOfReach
from app.index.comparator import COSINE, Comparator
from app.index.person_scores import PersonScore
from app.index.port import GallerySize

# Targets whose operating points describe a calibration to people.
SHOWN_FMR = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
SHOWN_FPIR = (0.1, 0.03, 0.01, 0.003, 0.001)
# FPIRs at all rows of the curve that are kept: three for each size of a gallery.
MAX_HELD = 96
# Of a collection that is calibrated on itself; more are sampled. 12.5 million comparisons: some
# seconds of one core, and thresholds down to an FMR of 1e-6.
MAX_TEMPLATES = 5_000
_OPTIONAL_SECTIONS = ("domain", "orientation", "score_exponents")

_Share = Annotated[float, Field(ge=0, le=1)]
_Similarity = Annotated[float, Field(ge=-1, le=1)]


class _CalibrationPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CalibrationFaces(_CalibrationPart):
    """The faces that a calibration was counted on.

    `digest` is the SHA-256 of their embeddings in order. `left_out`: pairs of people kept out of
    the non-mated comparisons because they are, or seem to be, one person under two names.
    """

    kind: Literal["photos", "collection"]
    name: str
    persons: Annotated[int, Field(gt=0)]
    faces: Annotated[int, Field(gt=0)]
    person_pairs: Annotated[float, Field(gt=0)]
    mated_persons: Annotated[int, Field(ge=0)]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    left_out: Annotated[int, Field(ge=0)]


class Curve(_CalibrationPart):
    """An error rate with its 95 % interval at rising similarities."""

    similarity: tuple[_Similarity, ...]
    rate: tuple[_Share, ...]
    low: tuple[_Share, ...]
    high: tuple[_Share, ...]

    @model_validator(mode="after")
    def _check(self) -> "Curve":
        columns = (self.similarity, self.rate, self.low, self.high)
        if len(self.similarity) < 2 or len({len(column) for column in columns}) != 1:
            raise ValueError("a curve needs columns of one length, two rows at least")
        if any(np.diff(self.similarity) <= 0):
            raise ValueError("similarities must rise")
        return self

    def at(self, similarity: float) -> Rate:
        """The rate at a similarity within the curve, logarithms interpolated."""
        value, low, high = (column.at(similarity) for column in self._columns)
        return Rate(value, low if low > _ZERO else 0.0, high)

    @property
    def upper(self) -> tuple[float, ...]:
        """The upper limits as they are answered."""
        return self.high

    @cached_property
    def _columns(self) -> tuple[RateCurve, RateCurve, RateCurve]:
        """Rate, low and upper: each answer looks there."""
        low, high = RateCurve(self.similarity, self.low), RateCurve(self.similarity, self.upper)
        return RateCurve(self.similarity, self.rate), low, high


class NonMatedCurve(Curve):
    """FMR, falling. Rows from `measured` on are extrapolated; `variation` is how much probes
    differ (squared coefficient of variation of their own rates)."""

    variation: tuple[Annotated[float, Field(ge=0)], ...]
    measured: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _check_rows(self) -> "NonMatedCurve":
        rows = len(self.similarity)
        if len(self.variation) != rows or self.measured > rows:
            raise ValueError("variation must have as many rows as the curve, measured no more")
        if any(np.diff(self.rate) > 0):
            raise ValueError("false match rates must not rise")
        return self

    @cached_property
    def upper(self) -> tuple[float, ...]:
        """None above that of a lower similarity: the FMR falls, but `high` may rise in the tail."""
        return tuple(np.minimum.accumulate(self.high).tolist())


class ScoreExponents(_CalibrationPart):
    """The exponents of the scores of several templates other than the best one's."""

    centroid: Annotated[float, Field(ge=0, le=1)]
    fused: Annotated[float, Field(ge=0, le=1)]


class Calibration(_CalibrationPart):
    """Error rates by similarity, valid for one embedding space and one precision of the index."""

    schema_version: Literal[1] = Field(1, alias="schema")
    embedding_space: str
    precision: str
    created_at: datetime
    source: CalibrationFaces
    fmr: NonMatedCurve
    fnmr: Curve | None
    # A person with n different templates (app.index.person_scores) is as easily mistaken as
    # n ** template_exponent persons with one, by the best template.
    template_exponent: Annotated[float, Field(ge=0, le=1)]
    # The same by the other scores (app.index.person_scores). With one template all scores are the
    # same, so they have the curves in common. None: it supports no other scores.
    score_exponents: ScoreExponents | None = None
    # None: its similarities are cosines, and no threshold follows a gallery's likeness.
    domain: Domain | None = None
    # None: photos are not turned and examined again.
    orientation: Orientation | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @cached_property
    def held_rates(self) -> dict[tuple[float, str], RateCurve]:
        """What `_fpir` keeps, by independent comparisons and column; at most MAX_HELD."""
        return {}

    def changed(self, **members: Any) -> "Calibration":
        """A calibration with other members; nothing that was computed of this one is kept."""
        kept = {name: getattr(self, name) for name in type(self).model_fields}
        return Calibration(**kept | members)

    @cached_property
    def calibration_id(self) -> str:
        """Digest of the content: the same id, the same answers."""
        content = json.dumps(self.content(), sort_keys=True).encode()
        return f"cal-{hashlib.sha256(content).hexdigest()[:16]}"

    @property
    def lowest_fmr(self) -> float:
        """The lowest false match rate it can answer for."""
        return self.fmr.rate[-1]

    def content(self) -> dict[str, object]:
        """As JSON, the way it is written to disk and database. A section that is None is left out,
        so that a calibration from before there were any keeps its id."""
        left_out: dict[str, Any] = {
            name: True for name in _OPTIONAL_SECTIONS if getattr(self, name) is None
        }
        if self.domain is not None:
            left_out["domain"] = self.domain.left_out()
        return self.model_dump(mode="json", by_alias=True, exclude=left_out)

    @property
    def comparator(self) -> Comparator:
        """How the similarities that it was counted on were computed."""
        return COSINE if self.domain is None else self.domain.shared.comparator

    def require(self, embedding_space: str, precision: str) -> "Calibration":
        """Itself. Raises CalibrationMismatch if it was made for another embedding space or
        precision than the caller's."""
        if (self.embedding_space, self.precision) == (embedding_space, precision):
            return self
        raise CalibrationMismatch(
            f"The calibration {self.calibration_id} was made for {self.embedding_space} at "
            f"{self.precision}; similarities here are of {embedding_space} at {precision}. "
            "Calibrate again for this model pack."
        )

    def fmr_at(self, similarity: float) -> Rate | None:
        """False match rate of one comparison at a threshold of `similarity`.

        None beyond the curve's end, where the rate is only known to be below `lowest_fmr`.
        """
        if similarity > self.fmr.similarity[-1]:
            return None
        if similarity < self.fmr.similarity[0]:
            return Rate(1.0, self.fmr.low[0], 1.0)
        rate = self.fmr.at(similarity)
        return Rate(rate.value, rate.low, rate.high, self.is_extrapolated(similarity))

    def fnmr_at(self, similarity: float) -> Rate | None:
        """False non-match rate at a threshold; None where no mated comparisons were counted."""
        if self.fnmr is None:
            return None
        return self.fnmr.at(similarity)

    def is_extrapolated(self, similarity: float) -> bool:
        """Whether a threshold lies beyond the counted comparisons, in the fitted tail."""
        return similarity > self.fmr.similarity[self.fmr.measured - 1]

    def fpir_at(self, similarity: float, size: GallerySize) -> Rate | None:
        """False positive identification rate of a search in a gallery of that size at a threshold
        of `similarity`; its interval is that of the false match rate.

        None beyond the curve's end, where the rate is only known to be below the upper limit of
        `fpir_at_end`.
        """
        if size.persons == 0:
            return Rate(0.0, 0.0, 0.0)
        rate = self.fmr_at(similarity)
        if rate is None:
            return None
        columns = (self._fpir(size, name) for name in ("rate", "low", "upper"))
        value, low, high = (column.at(similarity) for column in columns)
        if similarity < self.fmr.similarity[0]:
            return Rate(1.0, low, 1.0)
        return Rate(value, low if rate.low else 0.0, high, rate.extrapolated)

    def fpir_at_end(self, size: GallerySize) -> Rate:
        """The rate at the curve's end, the lowest that it can answer for."""
        rate = self.fpir_at(self.fmr.similarity[-1], size)
        assert rate is not None, "the end belongs to the curve"
        return rate

    def known_until(self, size: GallerySize, width: float) -> float:
        """The highest similarity up to which the limits of the interval of `fpir_at` are within a
        factor of each other, or in an empty gallery those of one comparison; -1 if nowhere."""
        x = self.fmr.similarity
        low, high = (self._fpir(size, column).rates for column in ("low", "upper"))
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.log(high) - np.log(low) - np.log(width)  # as they are interpolated
        beyond = np.flatnonzero(~(excess <= 0))
        if len(beyond) == 0:
            return x[-1]
        if (row := int(beyond[0])) == 0:
            return -1.0
        before, after = excess[row - 1 : row + 1]
        return float(x[row - 1] + (x[row] - x[row - 1]) * before / (before - after))

    def threshold_at(self, fpir: float, size: GallerySize, name: str = "target_fpir") -> float:
        """The lowest threshold at which a stranger is taken for anyone of a gallery in at most
        that share of searches; with one person of one template, that share is the FMR. `name`:
        the field that the caller set, for the text of RateOutOfReach."""
        return self._threshold(fpir, self._fpir(size), name)

    def threshold_if_supported(self, fpir: float, size: GallerySize) -> float | None:
        """The same; None if the calibration does not support the rate."""
        try:
            return self.threshold_at(fpir, size)
        except RateOutOfReach:
            return None

    def lowest_fpir(self, size: GallerySize) -> float:
        """The lowest false positive identification rate it can answer for at a gallery's size."""
        return float(self._fpir(size).rates[-1])

    def comparisons(self, size: GallerySize) -> float:
        """How many independent comparisons a search of such a gallery amounts to: those of each
        person, added up; one where there is nobody. Only for a score that it `knows`."""
        exponent = self.exponent_of(size.score)
        return sum(people * max(n, 1.0) ** exponent for n, people in size.effective) or 1.0

    def knows(self, score: PersonScore) -> bool:
        """Whether it was made for that score of several templates."""
        return score is PersonScore.BEST or self.score_exponents is not None

    def exponent_of(self, score: PersonScore) -> float:
        """By which power of the effective number of templates a person's false match rate grows."""
        if score is PersonScore.BEST:
            return self.template_exponent
        assert self.score_exponents is not None, "the score is known"
        return float(getattr(self.score_exponents, score.value))

    def match_rates(self, comparisons: Floats, rates: Sequence[float] | None = None) -> Floats:
        """The chance of a false match at each row of the curve (T,) in each number of independent
        comparisons (n,): (T, n). By default at the curve's rates, else at others (T,).

        A probe with its own false match rate p meets a match among n with 1 - (1 - p) ** n. The
        rates p of probes follow a gamma distribution whose mean is the FMR and whose squared
        coefficient of variation is `variation`: the mean over probes is negative binomial.
        """
        fmr = np.minimum(self.fmr.rate if rates is None else rates, 1 - 1e-12)
        rate = np.outer(-np.log1p(-fmr), comparisons)
        variation = np.maximum(self.fmr.variation, 1e-9)[:, np.newaxis]
        return np.asarray(-np.expm1(-np.log1p(variation * rate) / variation))

    def _fpir(self, size: GallerySize, column: str = "rate") -> RateCurve:
        """FPIR at each row of the curve, from a column of the FMR's. Kept for the next search of
        a gallery that has not changed."""
        comparisons = self.comparisons(size)
        held = self.held_rates.get((comparisons, column))
        if held is None:
            rates = self.match_rates(np.array([comparisons]), getattr(self.fmr, column))[:, 0]
            held = RateCurve(self.fmr.similarity, rates)
            if len(self.held_rates) >= MAX_HELD:
                self.held_rates.clear()
            self.held_rates[comparisons, column] = held
        return held

    def _persons_for(self, target: float, lowest: float) -> int:
        """On how many people, about, a calibration must be counted to reach a target below the
        lowest: what is counted goes with the pairs of people. Two digits, rounded up; at most
        MOST_PEOPLE."""
        # The roots are divided: the quotient of the rates can be beyond the largest float.
        exact = self.source.persons * float(np.sqrt(lowest) / np.sqrt(target))
        exact = min(exact, MOST_PEOPLE)
        unit = 10.0 ** max(0, int(np.floor(np.log10(exact))) - 1)
        return int(np.ceil(exact / unit) * unit)

    def _threshold(self, target: float, curve: RateCurve, name: str) -> float:
        rates = curve.rates
        if target >= rates[0]:
            return self.fmr.similarity[0]
        if target < rates[-1]:
            needed = self._persons_for(target, float(rates[-1]))
            tool = " with likeness evaluate FOLDER --calibration FILE, for a pack with that file"
            tool = tool if 2 * needed > MAX_TEMPLATES else ""
            raise RateOutOfReach(
                f"{name}={target:g} is below the lowest rate that the calibration "
                f"{self.calibration_id} supports: {float(f'{rates[-1]:.2g}'):g} here, from "
                f"{self.source.persons} people. Ask for a higher rate, give a threshold, or "
                f"calibrate on about {needed:,} people{tool}.",
                {
                    "lowest": float(rates[-1]),
                    "calibration_id": self.calibration_id,
                    "persons_needed": needed,
                },
            )
        return curve.similarity_of(target)


# A lower limit below it is none: the logarithm of 0 cannot be kept.
_ZERO = 2e-15
# That are said to be needed for a rate: more than live on Earth, and a whole number that every
# reader of JSON can hold.
MOST_PEOPLE = 1e10
