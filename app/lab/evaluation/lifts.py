"""What raises the threshold of a verification, fitted to a folder of people."""

from collections.abc import Mapping

import numpy as np

from app.decision.calibration import Calibration
from app.decision.pair_lifts import GROUP_FMR, PairLift, PairLifts
from app.decision.thresholds import ONE_COMPARISON
from app.errors import RateOutOfReach
from app.lab.evaluation.sample import FaceSample


def with_lifts(
    calibration: Calibration,
    degraded: PairLift | None,
    sample: FaceSample,
    attributes: Mapping[str, Mapping[str, str]],
) -> Calibration:
    """The calibration of a sample with the lift for degraded faces, and that for typical ones where
    the groups of people are known. Without a domain there is none."""
    if calibration.domain is None:
        return calibration
    typical = _typical(calibration, sample, attributes)
    lifts = PairLifts(degraded=degraded, typical=typical)
    domain = calibration.domain.model_copy(update={"verification": lifts})
    return Calibration(**dict(calibration) | {"domain": domain})


def _typical(
    calibration: Calibration, sample: FaceSample, attributes: Mapping[str, Mapping[str, str]]
) -> PairLift | None:
    """People are of one group where all attributes agree; those without one are left out, and so
    are the second names of people who are there twice."""
    if not attributes:
        return None
    second = sample.second_names()
    group_of = [
        "" if i in second else _group(name, attributes) for i, name in enumerate(sample.names)
    ]
    known = np.flatnonzero(np.array(group_of) != "")
    first = np.searchsorted(sample.data.persons, known)
    try:
        threshold = calibration.threshold_at(GROUP_FMR, ONE_COMPARISON)
    except RateOutOfReach:
        return None
    return PairLift.of_typical(
        sample.data.vectors[first],
        np.array(group_of)[known],
        sample.data.comparator,
        threshold,
        calibration.source.name,
    )


def _group(name: str, attributes: Mapping[str, Mapping[str, str]]) -> str:
    """The groups of a person in all attributes; empty where one is not known."""
    found = [group_of.get(name, "") for group_of in attributes.values()]
    return "\n".join(found) if all(found) else ""
