"""The quality that a face needs: the limits of a gate, and why a face fails them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.errors import FaceTooSmall, InvalidRequest, LivenessUnavailable, LowQuality, NotLive
from app.types import Face, Quality


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


# The Laplacian of bytes is at most 4 × 255 from 0, and its variance at most the square of that.
MOST_SHARPNESS = 1020.0**2


@dataclass(frozen=True, slots=True)
class Measurable:
    """What this service can measure: the shorter side of the largest face in pixels, and whether
    the model pack has networks for liveness and for a quality score."""

    face_size_px: float
    liveness: bool
    quality_score: bool


def require_passable(gate: QualityGate, name: str, measurable: Measurable) -> None:
    """Raise InvalidRequest or LivenessUnavailable if no face can pass a gate; `name` is its name
    in the message."""
    if gate.min_liveness is not None and not measurable.liveness:
        raise LivenessUnavailable(
            f"{name}.min_liveness is {gate.min_liveness:g}, and the running model pack has no "
            "liveness networks: no face could pass. Serve a pack that has (likeness models pack "
            "--liveness), or leave min_liveness out."
        )
    if gate.min_quality_score is not None and not measurable.quality_score:
        raise InvalidRequest(
            f"{name}.min_quality_score is {gate.min_quality_score:g}, and the running model pack "
            "has no quality network: no face could pass. Leave min_quality_score out."
        )
    darkest, brightest = gate.min_brightness, gate.max_brightness
    if darkest is not None and brightest is not None and darkest > brightest:
        raise InvalidRequest(
            f"{name}.min_brightness is {darkest:g}, above max_brightness, {brightest:g}: no face "
            "could pass. Send a min_brightness below max_brightness."
        )
    for limit, most, why in (
        ("min_face_size_px", measurable.face_size_px, "photos have no more pixels"),
        ("min_sharpness", MOST_SHARPNESS, "no photo is sharper"),
    ):
        value = getattr(gate, limit)
        if value is not None and value > most:
            raise InvalidRequest(
                f"{name}.{limit} is {value:g}, and at most {most:,.0f} can be reached: {why}. "
                "Send a lower limit."
            )


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
