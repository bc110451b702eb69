"""Sections of a calibration, fitted to a folder of people: what raises the threshold of a
verification, and after which looks a photo should be looked at turned.

The latter is fitted to upright photos and tried on turned ones. The limit of the detector's score
is as high as it can be with few upright photos below it; how much leaning is too much is fixed,
since heads and not networks decide it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.decision.calibration import Calibration
from app.decision.domain import Orientation
from app.decision.face_selection import FaceSelection, select_face
from app.decision.pair_lifts import GROUP_FMR, PairLift, PairLifts
from app.decision.thresholds import ONE_COMPARISON
from app.errors import FaceError, ImageError, RateOutOfReach
from app.faces.images import ROTATIONS, inverse, turned_image
from app.faces.orientation import OrientationLimits
from app.imaging import ImageLimits, decode_image
from app.inference.pack_spec import ModelPack
from app.lab.evaluation.protocol import Analyser, EnrolledPhotos, Tick, in_threads, read_photo
from app.lab.evaluation.sample import FaceSample
from app.types import Face


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
    return calibration.changed(domain=domain)


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


# The share of upright photos that may be looked at again.
LOOKED_AGAIN = 0.0025
ROLL_ABOVE = 30.0
SCORE_STEP = 0.01
# Photos that are tried, each upright and turned three times.
TRIED = 100
# Limits that set fewer turned photos upright are of no use: the pack looks once.
LEAST_RIGHTED = 0.8


@dataclass(frozen=True, slots=True)
class LabelledFolder:
    """Photos below a folder, the face that counts of each, and what to call the folder."""

    folder: Path
    name: str
    photos: EnrolledPhotos
    selection: FaceSelection


def fit_orientation(
    source: LabelledFolder,
    pack: ModelPack,
    analyser: Analyser,
    generator: np.random.Generator,
    tick: Tick = lambda: None,
) -> Orientation | None:
    """Limits for the pack's detector; None where they would not set turned photos upright.

    `tick` is called after each of at most TRIED photos.
    """
    upright = {name: face for name, face in source.photos.faces.items() if face.rotation == 0}
    if not upright:
        return None
    limits, looked_again = _limits(list(upright.values()))
    names = list(generator.permutation(sorted(upright))[:TRIED])
    righted = _try(source, names, analyser, limits, tick)
    if not righted or np.mean(righted) < LEAST_RIGHTED:
        return None
    return Orientation(
        detector=pack.detector.sha256,
        score_below=limits.score_below,
        roll_above=limits.roll_above,
        source=source.name,
        photos=len(upright),
        looked_again=round(looked_again, 6),
        turned=len(righted),
        righted=round(float(np.mean(righted)), 4),
    )


def _limits(faces: Sequence[Face]) -> tuple[OrientationLimits, float]:
    """The highest limit of the score that keeps to LOOKED_AGAIN, and the share it comes to."""
    scores = np.array([face.score for face in faces])
    leaning = np.array([abs(face.quality.roll) > ROLL_ABOVE for face in faces])
    allowed = max(0, int(LOOKED_AGAIN * len(faces)) - int(leaning.sum()))
    highest = float(np.sort(scores[~leaning])[allowed]) if allowed < (~leaning).sum() else 1.0
    limit = round(np.floor(highest / SCORE_STEP) * SCORE_STEP, 2)
    limits = OrientationLimits(float(np.clip(limit, SCORE_STEP, 1 - SCORE_STEP)), ROLL_ABOVE)
    return limits, float(np.mean(leaning | (scores < limits.score_below)))


def _try(
    source: LabelledFolder,
    names: Sequence[str],
    analyser: Analyser,
    limits: OrientationLimits,
    tick: Tick,
) -> list[bool]:
    """Whether each of the photos, turned each way, is set upright."""

    def righted(name: str) -> list[bool]:
        try:
            image = decode_image(read_photo(source.folder / name), ImageLimits())
        except ImageError:
            return []
        answers = []
        for rotation in ROTATIONS[1:]:
            turned = np.ascontiguousarray(turned_image(image, rotation))
            try:
                face = select_face(analyser.analyse_turned(turned, limits), source.selection)
                answers.append(face.rotation == inverse(rotation))
            except FaceError:
                answers.append(False)
        return answers

    return [answer for answers in in_threads(righted, names, tick) for answer in answers]
