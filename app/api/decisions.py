"""What answers say of the threshold that decided and of the errors it allows."""

from typing import Any

from app.api.fields import ThresholdFields
from app.api.schemas.decisions import CandidateInfo
from app.decision.calibration import SHOWN_FMR, SHOWN_FPIR, Calibration
from app.decision.policy import VerifyStatus
from app.decision.rates import Rate
from app.decision.refusals import OUTSIDE_CALIBRATION
from app.decision.thresholds import ONE_COMPARISON, ThresholdDecision, ThresholdRequest
from app.decision.verdicts import Doubt
from app.gallery.gallery import Candidate
from app.index.port import GallerySize


def threshold_request(fields: ThresholdFields) -> ThresholdRequest:
    """The threshold or target that a call names."""
    return ThresholdRequest(fields.threshold, fields.target_fpir, fields.target_fmr)


def threshold_members(decision: ThresholdDecision) -> dict[str, Any]:
    """The threshold, who chose it, and the calibration behind it."""
    calibration = decision.calibration
    return {
        "threshold": decision.threshold,
        "lift": round(decision.lift, 6),
        "threshold_source": decision.source,
        "target": decision.target,
        "calibration_id": calibration.calibration_id if calibration else None,
        "calibration_source": _kind(calibration),
    }


def fpir_members(decision: ThresholdDecision, searched: GallerySize) -> dict[str, Any]:
    """How much was searched, and how often a stranger is taken for someone in it.

    Beyond the calibration's end only the upper limit is known.
    """
    extent = {"searched": {"persons": searched.persons, "faces": searched.templates}}
    if decision.calibration is None:
        return {**extent, **_rate_members("fpir", None, None)}
    rate = decision.calibration.fpir_at(decision.unshifted(decision.threshold), searched)
    highest = decision.calibration.fpir_at_end(searched).high
    return {**extent, **_rate_members("fpir", rate, highest)}


def fmr_members(decision: ThresholdDecision, similarity: float) -> dict[str, Any]:
    """The false match rate at a similarity: its value, 95 % interval, and where it comes from.

    Beyond the calibration's end only the upper limit is known.
    """
    calibration = decision.calibration
    if calibration is None:
        return _rate_members("fmr", None, None)
    rate = calibration.fmr_at(decision.unshifted(similarity))
    return _rate_members("fmr", rate, calibration.fmr.high[-1])


def _rate_members(name: str, rate: Rate | None, highest: float | None) -> dict[str, Any]:
    """A rate, of which without a value only the `highest` is known, or not even that."""
    if rate is None:
        known = highest is not None
        interval = [0.0, _short(highest)] if known else None
        return {name: None, f"{name}_interval": interval, f"{name}_extrapolated": known}
    return {
        name: _short(rate.value),
        f"{name}_interval": [_short(rate.low), _short(rate.high)],
        f"{name}_extrapolated": rate.extrapolated,
    }


def candidate_info(candidate: Candidate, decision: ThresholdDecision) -> CandidateInfo:
    """One candidate of an identification."""
    return CandidateInfo(
        person_id=candidate.face.person_id,
        face_id=candidate.face.face_id,
        similarity=candidate.similarity,
        margin=candidate.margin,
        **fmr_members(decision, candidate.similarity),
    )


def doubt_members(doubt: Doubt | None, decision: ThresholdDecision) -> dict[str, Any]:
    """Between whom it is not decided, and the lead that would decide."""
    if doubt is None:
        return {"between": [], "margin_required": None}
    return {
        "between": [candidate_info(one, decision).model_dump() for one in doubt.between],
        "margin_required": doubt.margin,
    }


def verification_members(
    decision: ThresholdDecision,
    similarity: float,
    doubt: Doubt | None,
    *,
    reached: bool,
    refused: bool,
) -> dict[str, Any]:
    """Whether it is a match, and why it is none although the threshold is reached, or why it is
    not decided."""
    status = VerifyStatus.MATCH if reached else VerifyStatus.NO_MATCH
    if doubt is not None:
        status = VerifyStatus.AMBIGUOUS
    reasons = [] if doubt is None else [doubt.reason]
    if refused:
        status, reasons = VerifyStatus.REJECTED, [OUTSIDE_CALIBRATION]
    return {
        "is_match": status is VerifyStatus.MATCH,
        "status": status,
        "reasons": reasons,
        **doubt_members(doubt, decision),
        "similarity": similarity,
    }


def _kind(calibration: Calibration | None) -> str | None:
    if calibration is None:
        return None
    return "collection" if calibration.source.kind == "collection" else "pack"


def _short(rate: float | None) -> float | None:
    """Three digits are more than any calibration knows."""
    return None if rate is None else float(f"{rate:.3g}")


def calibration_members(
    calibration: Calibration | None, size: GallerySize, likeness: float | None
) -> dict[str, Any]:
    """A calibration as its operating points, those of searches in a gallery of that size and
    likeness."""
    searched = {"searched": {"persons": size.persons, "faces": size.templates}}
    if calibration is None:
        return searched
    lift = 0.0 if calibration.domain is None else calibration.domain.lift_of(likeness, size)
    return {
        "calibration_id": calibration.calibration_id,
        "calibration_source": _kind(calibration),
        "embedding_space": calibration.embedding_space,
        "precision": calibration.precision,
        "created_at": calibration.created_at,
        "source": calibration.source.model_dump(),
        "template_exponent": calibration.template_exponent,
        **searched,
        **_likeness_members(calibration, size, likeness),
        "fmr": [_point(calibration, rate, ONE_COMPARISON) for rate in SHOWN_FMR],
        "fpir": [_point(calibration, rate, size, lift) for rate in SHOWN_FPIR],
    }


def _likeness_members(
    calibration: Calibration, size: GallerySize, likeness: float | None
) -> dict[str, Any]:
    """How alike the collection's people are, and those of the calibration."""
    domain = calibration.domain
    if domain is None:
        return {"likeness": None, "lift": 0.0, "domain": None}
    shared = domain.shared
    return {
        "likeness": None if likeness is None else round(likeness, 4),
        "lift": round(domain.lift_of(likeness, size), 4),
        "domain": {
            "weight": shared.weight,
            "likeness": domain.likeness,
            "lift": domain.lift,
            "small_lift": domain.small_lift,
            "small_gallery": domain.small_gallery,
            "source": shared.source,
            "faces": shared.faces,
            "degradations": list(shared.degradations),
        },
    }


def _point(
    calibration: Calibration, target: float, size: GallerySize, lift: float = 0.0
) -> dict[str, Any]:
    point = calibration.operating_point(target, size)
    if point is None:
        return {"target": target, "threshold": None}
    return {
        "target": target,
        "threshold": round(min(1.0, point.threshold + lift), 4),
        "extrapolated": point.extrapolated,
        "fnmr": None if point.fnmr is None else _short(point.fnmr.value),
        "fnmr_interval": (
            None if point.fnmr is None else [_short(point.fnmr.low), _short(point.fnmr.high)]
        ),
    }
