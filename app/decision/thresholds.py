"""Finds the threshold that decides, from the target or threshold of a call and the policy of its
collection."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from app.decision.calibration import Calibration
from app.decision.policy import CollectionPolicy
from app.decision.rates import Rate
from app.errors import InvalidRequest, NotCalibrated, RateOutOfReach
from app.index.person_scores import PersonScore
from app.index.port import GallerySize
from app.types import FloatArray

ONE_COMPARISON = GallerySize(persons=1, templates=1)
# A calibration decides only where the limits of its rate's 95 % interval are within this factor of
# each other, as long as another one knows the rate better. A collection of 100 or 200 people says
# little of rates that its few pairs do not reach: at 1 % its own calibration let two to four times
# as many strangers pass (docs/benchmarks/accuracy.md).
WIDEST_INTERVAL = 25.0


class ThresholdSource(StrEnum):
    """Where the threshold comes from: the call, the collection's policy, the default policy, or,
    where nothing is calibrated, the pack's constant."""

    REQUEST = "request"
    COLLECTION = "collection"
    DEFAULT = "default"
    PACK = "pack"


@dataclass(frozen=True, slots=True)
class ThresholdRequest:
    """The threshold or target that a call names: at most one of these."""

    threshold: float | None = None
    target_fpir: float | None = None
    target_fmr: float | None = None


@dataclass(frozen=True, slots=True)
class CalibrationChain:
    """The calibrations that a decision can be based on, in order of preference (the collection's
    own, then the pack's), the constant for when there is none, and the score of a person's
    templates, which each of them knows."""

    calibrations: Sequence[Calibration]
    constant: float
    score: PersonScore = PersonScore.BEST

    @classmethod
    def of(
        cls, found: Sequence[Calibration], constant: float, policy: CollectionPolicy
    ) -> "CalibrationChain":
        """For the score of a policy.

        A score that the policy names itself is used where one of the calibrations knows it, or
        where a fixed threshold needs none; the default, where the preferred one does. Otherwise, as
        after a change of the model pack, the best template decides.
        """
        able = [one for one in found if one.knows(policy.score)]
        if "score" in policy.model_fields_set:
            usable = bool(able) or policy.threshold is not None
        else:
            usable = bool(found) and found[0].knows(policy.score)
        return cls(able, constant, policy.score) if usable else cls(found, constant)


@dataclass(frozen=True, slots=True)
class ThresholdDecision:
    """The threshold of a call, where it comes from, and what backs it.

    `target` is the rate it was chosen for, None for a fixed threshold. `calibration` also backs
    the error rates that an answer states. `score`: how a person with several templates is
    compared. `shift`: by how much the similarities of the gallery's people, or in a verification
    of faces like the two, exceed those of the calibration's; a threshold chosen for a target
    includes it. `counted`: the fixed threshold, or what the calibration gives for the target,
    without the shift. `at_least`: a lower limit, up to where other calibrations know higher rates.
    """

    counted: float
    source: ThresholdSource
    target: float | None
    calibration: Calibration | None
    shift: float = 0.0
    score: PersonScore = PersonScore.BEST
    at_least: float = -1.0

    @property
    def threshold(self) -> float:
        """The similarity from which on a face is accepted."""
        if self.target is None:
            return self.counted
        return min(1.0, max(self.counted + self.shift, self.at_least))

    @property
    def lift(self) -> float:
        """The part of the threshold that the gallery's likeness, or the two faces of a
        verification, make; 0 for a fixed one."""
        return self.shift if self.target is not None else 0.0

    def unshifted(self, similarity: float) -> float:
        """Where a similarity of this gallery is on the calibration's curves."""
        return similarity - self.shift

    def lifted(self, likeness: float | None, gallery: GallerySize) -> "ThresholdDecision":
        """This decision in a gallery of that likeness."""
        domain = None if self.calibration is None else self.calibration.domain
        if domain is None:
            return self
        return replace(self, shift=domain.lift_of(likeness, gallery))

    def for_pair(self, probe: FloatArray, reference: FloatArray) -> "ThresholdDecision":
        """This decision for two faces (d,)."""
        domain = None if self.calibration is None else self.calibration.domain
        if domain is None:
            return self
        return replace(self, shift=domain.verification.of(probe, reference))


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What decides at a target, and the mates that it misses (None: none were counted)."""

    threshold: float
    calibration: Calibration
    extrapolated: bool
    fnmr: Rate | None


@dataclass(frozen=True, slots=True)
class Default:
    """Which of a policy's targets holds where a call names none, and the size of gallery that its
    threshold is for."""

    target: Literal["target_fpir", "target_fmr"]
    size: GallerySize


def identification_threshold(
    request: ThresholdRequest,
    policy: CollectionPolicy,
    chain: CalibrationChain,
    gallery: GallerySize,
    *,
    likeness: float | None = None,
) -> ThresholdDecision:
    """The threshold for searching a gallery of that size and likeness by the chain's score. Raises
    RateOutOfReach or NotCalibrated."""
    size = gallery.scored_by(chain.score)
    if request.target_fmr is not None:
        decision = _requested_threshold(request.target_fmr, "target_fmr", ONE_COMPARISON, chain)
    else:
        decision = _policy_threshold(request, policy, chain, size, Default("target_fpir", size))
    return replace(decision.lifted(likeness, size), score=chain.score)


def operating_point(
    request: ThresholdRequest,
    chain: CalibrationChain,
    gallery: GallerySize,
    *,
    likeness: float | None = None,
) -> OperatingPoint | None:
    """What decides a search at the target that `request` names; None where no calibration supports
    it."""
    try:
        found = identification_threshold(
            request, CollectionPolicy(), chain, gallery, likeness=likeness
        )
    except RateOutOfReach:
        return None
    assert found.calibration is not None, "a target needs one"
    counted = found.unshifted(found.threshold)
    return OperatingPoint(
        found.threshold,
        found.calibration,
        found.calibration.is_extrapolated(counted),
        found.calibration.fnmr_at(counted),
    )


def verification_threshold(
    request: ThresholdRequest,
    policy: CollectionPolicy,
    chain: CalibrationChain,
    compared: GallerySize,
    gallery: GallerySize,
    *,
    likeness: float | None = None,
) -> ThresholdDecision:
    """The threshold for comparing a probe by the chain's score with what `compared` counts: the
    templates of one claimed person, each of which is a chance of a false match, or one photo. With
    `target_fpir` it is the one that identification would use in a gallery of that size and
    likeness.

    Raises RateOutOfReach or NotCalibrated.
    """
    claimed, size = (one.scored_by(chain.score) for one in (compared, gallery))
    if request.target_fmr is not None:
        decision = _requested_threshold(request.target_fmr, "target_fmr", claimed, chain)
    elif request.target_fpir is not None:
        decision = _requested_threshold(request.target_fpir, "target_fpir", size, chain)
        decision = decision.lifted(likeness, size)
    else:
        decision = _policy_threshold(request, policy, chain, size, Default("target_fmr", claimed))
    return replace(decision, score=chain.score)


def refuse_lower(found: ThresholdDecision, own: ThresholdDecision, collection: str) -> None:
    """Raise InvalidRequest if the threshold that a call has found is below the policy's own. For a
    policy that shows only who is identified: at a threshold of -1 everybody is, and a verification
    names those who are declared different from the claimed person."""
    if found.threshold < own.threshold:
        raise InvalidRequest(
            f"The call's threshold, {found.threshold:.4g}, is below {own.threshold:.4g}, that of "
            f"the policy of '{collection}'. With its candidates=identified a call can only raise "
            "it: send a higher threshold, a lower target, or neither."
        )


def _policy_threshold(
    request: ThresholdRequest,
    policy: CollectionPolicy,
    chain: CalibrationChain,
    gallery: GallerySize,
    default: Default,
) -> ThresholdDecision:
    preferred = next(iter(chain.calibrations), None)
    if request.threshold is not None:
        return ThresholdDecision(request.threshold, ThresholdSource.REQUEST, None, preferred)
    if request.target_fpir is not None:
        return _requested_threshold(request.target_fpir, "target_fpir", gallery, chain)
    if policy.threshold is not None:
        return ThresholdDecision(policy.threshold, ThresholdSource.COLLECTION, None, preferred)
    own = default.target in policy.model_fields_set
    source = ThresholdSource.COLLECTION if own else ThresholdSource.DEFAULT
    if preferred is None:
        return ThresholdDecision(chain.constant, ThresholdSource.PACK, None, None)
    target: float = getattr(policy, default.target)
    try:
        return _at(target, default.target, default.size, chain, source)
    except RateOutOfReach:
        # The target is the policy's, not the call's: the highest threshold that a calibration
        # supports is used, and the answer states its error rate; otherwise a gallery that has grown
        # too large would give no answer.
        strictest = min(chain.calibrations, key=lambda c: c.lowest_fpir(default.size))
        ends = [one.fmr.similarity[-1] for one in chain.calibrations]
        end = strictest.fmr.similarity[-1]
        return ThresholdDecision(end, source, target, strictest, at_least=max(ends))


def _requested_threshold(
    target: float, name: str, size: GallerySize, chain: CalibrationChain
) -> ThresholdDecision:
    if not chain.calibrations:
        kind = "" if chain.score is PersonScore.BEST else f" for score={chain.score.value}"
        raise NotCalibrated(
            f"{name} needs a calibration{kind}, and neither the collection nor the model pack has "
            "one. Give a threshold, or calibrate the collection (POST …/calibrate)."
        )
    return _at(target, name, size, chain, ThresholdSource.REQUEST)


def _at(
    target: float, name: str, size: GallerySize, chain: CalibrationChain, source: ThresholdSource
) -> ThresholdDecision:
    """By the first calibration that knows the rate within WIDEST_INTERVAL at its threshold for the
    target; where none does, by the one that so knows lower rates than the others. The threshold is
    not below the similarities that the calibrations before it know, so that a lower target never
    has a lower threshold. Raises RateOutOfReach of the one that supports the lowest rate."""

    def by(calibration: Calibration) -> ThresholdDecision:
        threshold = calibration.threshold_at(target, size, name)
        return ThresholdDecision(threshold, source, target, calibration, at_least=at_least)

    at_least, order = -1.0, list[tuple[float, Calibration]]()
    for calibration in chain.calibrations:
        known = calibration.known_until(size, WIDEST_INTERVAL)
        if target >= calibration.lowest_fpir(size) and (found := by(calibration)).counted <= known:
            return found
        at_least = max(at_least, known)
        rate = calibration.fpir_at(known, size)
        order.append((1.0 if rate is None else rate.value, calibration))
    for _, calibration in sorted(order, key=lambda one: one[0]):
        if target >= calibration.lowest_fpir(size):
            return by(calibration)
        at_least = max(at_least, calibration.fmr.similarity[-1])
    return by(min(chain.calibrations, key=lambda one: one.lowest_fpir(size)))
