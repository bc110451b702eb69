"""Error rates of identification at the threshold that the service itself would take."""

import hashlib

from app.decision.calibration import Calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.domain import labelled_likeness
from app.decision.thresholds import (
    CalibrationChain,
    CollectionPolicy,
    ThresholdRequest,
    identification_threshold,
)
from app.index.likeness import LEAST_PERSONS
from app.index.port import GallerySize
from app.lab.evaluation.figures import SettingFigures
from app.lab.evaluation.identification import rates_of, search, split
from app.lab.evaluation.sample import FaceSample


def at_setting(
    sample: FaceSample,
    name: str,
    policy: CollectionPolicy,
    shipped: Calibration | None,
    constant: float,
) -> SettingFigures | None:
    """Everyone with two photos enrolled with the first, searched for by their other photos and by
    strangers, people with one photo. None where there are fewer than two to enroll or no stranger.

    `name` is that of the data, `shipped` is the pack's calibration, `constant` its
    threshold where there is none.
    """
    enrolled, strangers = split(sample)
    if len(enrolled) < 2 or len(strangers) == 0:
        return None
    size = GallerySize(len(enrolled), len(enrolled))
    chain = CalibrationChain([] if shipped is None else [shipped], constant)
    likeness = gallery_likeness(sample.data.of_persons(enrolled))
    rule = identification_threshold(ThresholdRequest(), policy, chain, size, likeness=likeness)
    fpir, fnir = rates_of(search(sample, enrolled, strangers), rule.threshold, len(strangers))
    return SettingFigures(
        target_fpir=rule.target,
        threshold=rule.threshold,
        calibration_id=None if rule.calibration is None else rule.calibration.calibration_id,
        same_data=rule.calibration is not None and _made_of(rule.calibration, sample, name),
        persons=len(enrolled),
        strangers=len(strangers),
        fpir=fpir,
        fnir=fnir,
    )


def gallery_likeness(data: LabelledEmbeddings) -> float | None:
    """How similar the people of a gallery are, which may raise its threshold; None for too few."""
    return labelled_likeness(data) if data.person_count >= LEAST_PERSONS else None


def _made_of(calibration: Calibration, sample: FaceSample, name: str) -> bool:
    """Whether it was made of these faces; another build may have embedded them a little otherwise,
    so a folder of that name with as many people counts as well."""
    source = calibration.source
    if (source.name, source.persons) == (name, sample.data.person_count):
        return True
    digest = hashlib.sha256(sample.data.vectors.astype("<f4").tobytes()).hexdigest()
    return source.digest == digest
