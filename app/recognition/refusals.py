"""Which decisions are refused, because the compared faces are outside the calibrated domain."""

from app.decision.refusals import Refusals
from app.decision.thresholds import ThresholdDecision
from app.services import Services


def refusals_of(
    services: Services, collection: str, threshold: ThresholdDecision
) -> Refusals | None:
    """None where no error rate is promised: without a domain, or for a fixed threshold."""
    domain = None if threshold.calibration is None else threshold.calibration.domain
    if domain is None or threshold.target is None:
        return None
    return Refusals(services.gallery, collection, domain.limits)
