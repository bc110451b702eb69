"""What `/v1/verify` and `/v1/identify` answer."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.api.schemas.common import (
    FACE,
    IMAGE,
    Answer,
    Extent,
    FaceInfo,
    Fmr,
    FmrExtrapolated,
    FmrInterval,
    ImageInfo,
    example,
)
from app.decision.policy import Status, VerifyStatus
from app.decision.thresholds import ThresholdSource


class CandidateInfo(BaseModel):
    person_id: str
    face_id: str
    similarity: Annotated[float, Field(ge=-1, le=1, description="Cosine, never a percentage.")]
    fmr: Fmr = None
    fmr_interval: FmrInterval = None
    fmr_extrapolated: FmrExtrapolated = False
    margin: Annotated[
        float | None, Field(description="Lead over the next person; null when there is none.")
    ] = None


Between = Annotated[
    list[CandidateInfo],
    Field(
        default_factory=list,
        description="When ambiguous: the persons, declared to be different, between whom it is not "
        "decided, the most similar first. Else empty.",
    ),
]
MarginRequired = Annotated[
    float | None,
    Field(
        description="When ambiguous: the lead that the first of `between` needs over the other; "
        "null without a calibration."
    ),
]


class IdentifiedFace(FaceInfo):
    status: Status
    person_id: Annotated[str | None, Field(description="The person, when identified.")] = None
    reasons: Annotated[
        list[str],
        Field(
            default_factory=list,
            description="Why it was rejected: the limits of the collection's gate that it "
            "fails, or `outside_calibration` if this face and the nearest stored "
            "one both look so degraded (`degradation`) that their similarity proves "
            "nothing. When ambiguous: `margin_too_small`, or `nearer_to_other` if "
            "the person who is left to choose is not the one it resembles most.",
        ),
    ]
    between: Between
    margin_required: MarginRequired = None
    candidates: Annotated[
        list[CandidateInfo], Field(description="The nearest persons, matches or not, best first.")
    ]


class Decided(BaseModel):
    """The threshold that decided, and what backs it."""

    threshold: float
    lift: Annotated[
        float,
        Field(
            description="The part of the threshold that is due to how alike the collection's "
            "people are; 0 for a fixed threshold."
        ),
    ] = 0.0
    threshold_source: Annotated[
        ThresholdSource,
        Field(
            description="Where the threshold comes from: this request, the collection's policy, "
            "the default policy, or the pack's constant where nothing is calibrated."
        ),
    ]
    target: Annotated[
        float | None,
        Field(
            description="The error rate that the threshold was chosen for; null "
            "for a fixed threshold."
        ),
    ] = None
    calibration_id: str | None = None
    calibration_source: Annotated[
        Literal["collection", "pack"] | None,
        Field(description="Which faces the calibration was counted on."),
    ] = None


_DECIDED: dict[str, Any] = {
    "threshold": 0.527,
    "lift": 0.0,
    "threshold_source": "default",
    "target": 0.0001,
    "calibration_id": "cal-139201e23a15dd14",
    "calibration_source": "pack",
}


class VerifyAnswer(Answer, Decided):
    model_config = example(
        is_match=True,
        status="match",
        reasons=[],
        between=[],
        margin_required=None,
        similarity=0.77,
        **_DECIDED,
        fmr=None,
        fmr_interval=[0.0, 1.1e-06],
        fmr_extrapolated=True,
        person_id="obama",
        face_id="7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11",
        face=FACE,
        reference_face=None,
    )
    is_match: bool
    status: Annotated[
        VerifyStatus,
        Field(
            description="`ambiguous`: the similarity reaches the threshold, but another person who "
            "is declared to be different is as similar or nearly so. `rejected`: both faces are "
            "blurred, dark or degraded, so that their similarity proves nothing. `is_match` is "
            "false in either case."
        ),
    ]
    reasons: Annotated[
        list[str],
        Field(
            default_factory=list,
            description="When ambiguous: `margin_too_small`, or `nearer_to_other` if it is "
            "clearly the other person's face. When rejected: `outside_calibration`.",
        ),
    ]
    between: Between
    margin_required: MarginRequired = None
    similarity: Annotated[float, Field(ge=-1, le=1)]
    fmr: Fmr = None
    fmr_interval: FmrInterval = None
    fmr_extrapolated: FmrExtrapolated = False
    person_id: str | None = None
    face_id: str | None = None
    face: FaceInfo
    reference_face: FaceInfo | None = None


class IdentifyAnswer(Answer, Decided):
    model_config = example(
        collection="default",
        **{**_DECIDED, "threshold": 0.398, "target": 0.01},
        searched={"persons": 2, "faces": 3},
        fpir=0.01,
        fpir_interval=[0.0085, 0.0116],
        fpir_extrapolated=False,
        images=[IMAGE],
        faces=[
            {
                **FACE,
                "status": "identified",
                "person_id": "obama",
                "reasons": [],
                "between": [],
                "margin_required": None,
                "candidates": [
                    {
                        "person_id": "obama",
                        "face_id": "7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11",
                        "similarity": 0.61,
                        "fmr": 3.9e-06,
                        "fmr_interval": [2.2e-06, 6.4e-06],
                        "fmr_extrapolated": False,
                        "margin": 0.76,
                    }
                ],
            }
        ],
    )
    collection: str
    searched: Annotated[
        Extent,
        Field(description="Number of persons and faces that were searched, after the filter."),
    ]
    fpir: Annotated[
        float | None,
        Field(
            description="Share of strangers who would be taken for someone here at this threshold; "
            "null beyond the end of the calibration, where only the interval is known."
        ),
    ] = None
    fpir_interval: Annotated[
        tuple[float, float] | None, Field(description="Its 95 % confidence interval.")
    ] = None
    fpir_extrapolated: Annotated[
        bool, Field(description="Whether it lies beyond the comparisons that were counted.")
    ] = False
    images: list[ImageInfo]
    faces: list[IdentifiedFace]
