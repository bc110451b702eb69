"""Which face of a photo is used, the quality that it needs, and when two faces are taken for one
person."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.errors import FaceTooSmall, LowQuality, NoFace, NotLive, SeveralFaces
from app.faces.looks import FaceSelector
from app.types import AnalysedImage, Face, FloatArray, Quality


def _without_fraction(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Of an int in a strict model, after its Field: JSON does not tell 30.0 from 30.
WHOLE_NUMBER = BeforeValidator(_without_fraction)


class QualityGate(BaseModel):
    """Limits on the measures of a face; a limit that is left out (null) is not checked."""

    # In JSON, where policies come from, numbers are numbers.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    min_face_size_px: Annotated[
        float | None, Field(gt=0, description="Shorter side of the box in pixels.")
    ] = None
    min_sharpness: Annotated[
        float | None, Field(gt=0, description="Variance of the Laplacian of the aligned face.")
    ] = None
    min_brightness: Annotated[
        float | None, Field(gt=0, lt=1, description="Mean luma of the middle of the aligned face.")
    ] = None
    max_brightness: Annotated[
        float | None, Field(gt=0, lt=1, description="Mean luma of the middle of the aligned face.")
    ] = None
    min_embedding_norm: Annotated[
        float | None,
        Field(
            gt=0,
            description="Length of the raw embedding; its scale differs between model packs.",
        ),
    ] = None
    min_liveness: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="Probability that the face is live; needs a model "
            "pack with liveness networks.",
        ),
    ] = None
    min_quality_score: Annotated[
        float | None,
        Field(
            description="Output of the pack's quality network; its scale depends on the network."
        ),
    ] = None


OPEN_GATE = QualityGate()
# Mild: beyond these limits most mated comparisons fail, and none of 6,410 press photos (LFW) lies
# there. docs/decisions.md has the measurement, and why pose has no gate.
MILD_GATE = QualityGate(
    min_face_size_px=20.0, min_sharpness=8.0, min_brightness=0.05, max_brightness=0.95
)


@dataclass(frozen=True, slots=True)
class GateFailure:
    """Why a face was rejected: a stable code and a sentence."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class _Limit:
    name: str
    code: str
    fails: Callable[[Quality, float], bool]
    detail: str


_LIMITS = (
    _Limit(
        "min_face_size_px",
        "face_too_small",
        lambda quality, limit: quality.face_size_px < limit,
        "The face's shorter side has {0.face_size_px:.0f} pixels, {1:g} are needed; send a photo "
        "taken closer or with more pixels.",
    ),
    _Limit(
        "min_sharpness",
        "blurred",
        lambda quality, limit: quality.sharpness < limit,
        "The face is blurred; send a sharper photo.",
    ),
    _Limit(
        "min_brightness",
        "too_dark",
        lambda quality, limit: quality.brightness < limit,
        "The face is too dark; send a photo with more light.",
    ),
    _Limit(
        "max_brightness",
        "too_bright",
        lambda quality, limit: quality.brightness > limit,
        "The face is too bright; send a photo with less light.",
    ),
    _Limit(
        "min_embedding_norm",
        "unsure",
        lambda quality, limit: (
            quality.embedding_norm is not None and quality.embedding_norm < limit
        ),
        "The network is unsure of this face; send a clearer photo from the front.",
    ),
    _Limit(
        "min_quality_score",
        "low_quality_score",
        lambda quality, limit: quality.quality_score is None or quality.quality_score < limit,
        "The face is hard to recognise; send a clearer photo from the front.",
    ),
)
# What the model pack was not asked, or cannot measure, is no evidence of life.
_NOT_LIVE = _Limit(
    "min_liveness",
    "not_live",
    lambda quality, limit: quality.liveness is None or quality.liveness < limit,
    "This does not look like a live face; send a photo of the person, not of a picture or screen.",
)


_ERRORS = {error.code: error for error in (FaceTooSmall, NotLive)}


def gate_failures(quality: Quality, gate: QualityGate) -> list[GateFailure]:
    """The limits of a gate that a face fails, the most serious first; empty when it passes."""
    found = []
    for limit in (_NOT_LIVE, *_LIMITS):
        value = getattr(gate, limit.name)
        if value is not None and limit.fails(quality, value):
            found.append(GateFailure(limit.code, limit.detail.format(quality, value)))
    return found


def check_quality(face: Face, gate: QualityGate) -> None:
    """Raise NotLive, FaceTooSmall or LowQuality with all `reasons` unless the face may pass."""
    found = gate_failures(face.quality, gate)
    if not found:
        return
    error = _ERRORS.get(found[0].code, LowQuality)
    raise error(found[0].detail, {"reasons": [failure.code for failure in found]})


# A face less than half as large as the largest is a bystander.
BYSTANDER_SIZE = 0.5


class FaceSelection(StrEnum):
    """Which face of a photo is used by a call that needs one.

    `only`: the only face, where faces less than half as large as the largest are ignored; a photo
    of several people is refused. `largest`: the one with the largest box. `centre`: the one nearest
    the middle of the photo.
    """

    ONLY = "only"
    LARGEST = "largest"
    CENTRE = "centre"


class Status(StrEnum):
    """The answer of an identification for one face.

    `rejected`: the probe was not good enough to decide, however similar a person is. `ambiguous`:
    it is one of several persons who were declared to be different, and not clear which.
    """

    IDENTIFIED = "identified"
    AMBIGUOUS = "ambiguous"
    UNKNOWN = "unknown"
    REJECTED = "rejected"


class VerifyStatus(StrEnum):
    """The answer of a verification. `ambiguous` and `rejected`: as `Status` has them; neither is a
    match."""

    MATCH = "match"
    NO_MATCH = "no_match"
    AMBIGUOUS = "ambiguous"
    REJECTED = "rejected"


def select_face(image: AnalysedImage, selection: FaceSelection) -> Face:
    """The selected face of a photo. Raises NoFace or SeveralFaces."""
    boxes = np.array([face.box for face in image.faces], np.float32).reshape(-1, 4)
    return image.faces[select_box(boxes, image.width, image.height, selection)]


def selector_of(selection: FaceSelection) -> FaceSelector:
    """What chooses the face while a photo is analysed."""
    return FaceSelector(
        partial(select_box, selection=selection), by_size=selection is not FaceSelection.CENTRE
    )


def select_box(boxes: FloatArray, width: int, height: int, selection: FaceSelection) -> int:
    """Which of the boxes (n, 4), the largest first, is the selected face of a photo of that size.
    Raises NoFace or SeveralFaces."""
    if not len(boxes):
        raise NoFace(
            "No face was found in the photo; send one where the face is at least 32 pixels wide, "
            "upright and not covered."
        )
    if selection is FaceSelection.ONLY and len(boxes) > 1:
        _refuse_rivals(boxes)
    if selection is FaceSelection.CENTRE:
        offset = (boxes[:, :2] + boxes[:, 2:]) / 2 - np.array([width / 2, height / 2], np.float32)
        return int(np.argmin(np.hypot(offset[:, 0], offset[:, 1])))
    return 0


def _refuse_rivals(boxes: FloatArray) -> None:
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    rivals = int(np.sum(sides >= BYSTANDER_SIZE * sides[0]))
    if rivals > 1:
        raise SeveralFaces(
            f"{rivals} faces of similar size were found; send a photo of one person, crop it, or "
            "choose with face_selection=largest or centre.",
            {"faces_found": len(boxes)},
        )


def usable_face(image: AnalysedImage, selection: FaceSelection, gate: QualityGate) -> Face:
    """The face of a photo that is compared, if it passes the gate. Raises the FaceError family."""
    face = select_face(image, selection)
    check_quality(face, gate)
    return face


def is_match(similarity: float, threshold: float) -> bool:
    """Whether a similarity counts as the same person: the threshold itself does."""
    return similarity >= threshold
