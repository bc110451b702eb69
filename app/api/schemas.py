"""The answers over the wire, with examples that validate."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.decision.policy import Status
from app.decision.rules import CollectionPolicy, ThresholdSource


class ModelInfo(BaseModel):
    """The model pack that answered; equal embedding spaces can be compared."""

    pack: str
    version: str
    embedding_space: str


class Answer(BaseModel):
    """What every answer carries."""

    request_id: str | None
    model: ModelInfo
    timings_ms: dict[str, float]


class QualityInfo(BaseModel):
    face_size_px: Annotated[float, Field(description="Shorter side of the box in pixels.")]
    yaw: Annotated[float, Field(description="Degrees, positive towards the picture's right.")]
    pitch: Annotated[float, Field(description="Degrees, positive downwards.")]
    roll: Annotated[float, Field(description="Degrees, positive clockwise.")]
    sharpness: Annotated[float, Field(description="Variance of the Laplacian of the crop.")]
    brightness: Annotated[float, Field(description="Mean luma of the crop, 0 to 1.")]
    detector_score: float
    embedding_norm: Annotated[
        float | None, Field(description="Length of the raw embedding; short means unsure.")
    ] = None
    liveness: Annotated[
        float | None,
        Field(description="Chance that the face is live, 0 to 1; null where nobody asked."),
    ] = None
    quality_score: Annotated[
        float | None, Field(description="Of the pack's quality network; null where it has none.")
    ] = None


class ImageInfo(BaseModel):
    """One image of the call. `error` says why it could not be used."""

    index: int
    width: int | None = None
    height: int | None = None
    faces: int = 0
    error: dict[str, Any] | None = None


class FaceInfo(BaseModel):
    """One face. Coordinates are pixels of the upright image (EXIF applied), from the top left."""

    image_index: int
    box: Annotated[list[float], Field(min_length=4, max_length=4, description="x1, y1, x2, y2")]
    box_normalised: Annotated[
        list[float], Field(min_length=4, max_length=4, description="The box in shares of the image")
    ]
    landmarks: Annotated[
        list[list[float]],
        Field(description="Eyes, nose tip, mouth corners as x, y; left to right in the image."),
    ]
    score: float
    quality: QualityInfo


class EmbeddedFace(FaceInfo):
    embedding: list[float]


Fmr = Annotated[
    float | None,
    Field(
        description="Share of comparisons of different people that reach this similarity; null "
        "where nothing is calibrated, or so high that only the interval's upper end is known."
    ),
]
FmrInterval = Annotated[
    list[float] | None, Field(description="95 % interval of fmr.", min_length=2, max_length=2)
]
FmrExtrapolated = Annotated[
    bool, Field(description="Beyond the comparisons counted, from a fitted tail.")
]


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


class IdentifiedFace(FaceInfo):
    status: Status
    person_id: Annotated[str | None, Field(description="The person, when identified.")] = None
    reasons: Annotated[
        list[str], Field(description="Why it was rejected: what the collection's gate misses.")
    ] = []
    candidates: Annotated[
        list[CandidateInfo], Field(description="The nearest persons, matches or not, best first.")
    ]


class EnrolledFace(BaseModel):
    index: int
    face_id: str
    duplicate: Annotated[bool, Field(description="This content was stored for them before.")]
    quality: dict[str, Any]


class RejectedImage(BaseModel):
    index: int
    reasons: list[str]
    detail: str


_MODEL: dict[str, Any] = {
    "pack": "default",
    "version": "1.0.0",
    "embedding_space": "es-038d0789502f026c",
}
EXAMPLE_HEAD: dict[str, Any] = {
    "request_id": "0d7c4c0b2c5f4c0c8f5d3b1f8e6a9b7d",
    "model": _MODEL,
    "timings_ms": {"decode": 11.8, "detect": 50.9, "align": 0.4, "embed": 12.6, "total": 77.9},
}
_QUALITY: dict[str, Any] = {
    "face_size_px": 251.0,
    "yaw": 4.6,
    "pitch": -1.9,
    "roll": -2.4,
    "sharpness": 1993.3,
    "brightness": 0.6,
    "detector_score": 0.92,
    "embedding_norm": 75.0,
}
_FACE: dict[str, Any] = {
    "image_index": 0,
    "box": [368.0, 85.0, 619.0, 434.0],
    "box_normalised": [0.404, 0.075, 0.68, 0.382],
    "landmarks": [[436.1, 224.0], [547.6, 218.2], [496.0, 290.3], [448.2, 343.9], [547.0, 339.5]],
    "score": 0.92,
    "quality": _QUALITY,
}
_DECIDED: dict[str, Any] = {
    "threshold": 0.527,
    "threshold_source": "default",
    "target": 0.0001,
    "calibration_id": "cal-139201e23a15dd14",
    "calibration_source": "pack",
}
_IMAGE: dict[str, Any] = {"index": 0, "width": 910, "height": 1137, "faces": 1, "error": None}
_TIME = "2026-11-23T12:00:00Z"


def _example(**members: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [{**EXAMPLE_HEAD, **members}]})


class DetectAnswer(Answer):
    model_config = _example(images=[_IMAGE], faces=[_FACE])
    images: list[ImageInfo]
    faces: list[FaceInfo]


class EmbedAnswer(Answer):
    model_config = _example(images=[_IMAGE], faces=[{**_FACE, "embedding": [0.052, -0.031, 0.108]}])
    images: list[ImageInfo]
    faces: list[EmbeddedFace]


class EnrollAnswer(Answer):
    model_config = _example(
        collection="default",
        person_id="obama",
        enrolled=[
            {
                "index": 0,
                "face_id": "7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11",
                "duplicate": False,
                "quality": _QUALITY,
            }
        ],
        rejected=[
            {"index": 1, "reasons": ["no_face"], "detail": "No face was found in the photo."}
        ],
    )
    collection: str
    person_id: str
    enrolled: list[EnrolledFace]
    rejected: list[RejectedImage]


class Decided(BaseModel):
    """The threshold that decided, and what backs it."""

    threshold: float
    threshold_source: Annotated[
        ThresholdSource,
        Field(
            description="Who chose it: this request, the collection's policy, the default policy, "
            "or the pack's constant where nothing is calibrated."
        ),
    ]
    target: Annotated[
        float | None, Field(description="The error rate it was chosen for; null: a fixed one.")
    ] = None
    calibration_id: str | None = None
    calibration_source: Annotated[
        Literal["collection", "pack"] | None, Field(description="Whose faces it was counted on.")
    ] = None


class VerifyAnswer(Answer, Decided):
    model_config = _example(
        is_match=True,
        similarity=0.77,
        **_DECIDED,
        fmr=None,
        fmr_interval=[0.0, 1.1e-06],
        fmr_extrapolated=True,
        person_id="obama",
        face_id="7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11",
        face=_FACE,
        reference_face=None,
    )
    is_match: bool
    similarity: Annotated[float, Field(ge=-1, le=1)]
    fmr: Fmr = None
    fmr_interval: FmrInterval = None
    fmr_extrapolated: FmrExtrapolated = False
    person_id: str | None = None
    face_id: str | None = None
    face: FaceInfo
    reference_face: FaceInfo | None = None


class Extent(BaseModel):
    persons: int
    faces: int


class IdentifyAnswer(Answer, Decided):
    model_config = _example(
        collection="default",
        **{**_DECIDED, "threshold": 0.398, "target": 0.01},
        searched={"persons": 2, "faces": 3},
        fpir=0.01,
        images=[_IMAGE],
        faces=[
            {
                **_FACE,
                "status": "identified",
                "person_id": "obama",
                "reasons": [],
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
        Extent, Field(description="What was searched: with a filter, what it left.")
    ]
    fpir: Annotated[
        float | None,
        Field(
            description="Share of strangers who would be taken for someone here, at this threshold."
        ),
    ] = None
    images: list[ImageInfo]
    faces: list[IdentifiedFace]


class CollectionInfo(BaseModel):
    name: str
    embedding_space: str
    dimension: int
    persons: int
    faces: int
    metadata: dict[str, Any]
    policy: CollectionPolicy
    calibration_id: Annotated[
        str | None, Field(description="The calibration it made of itself; null: the pack's serves.")
    ] = None
    created_at: datetime


class PersonInfo(BaseModel):
    person_id: str
    metadata: dict[str, Any]
    faces: int
    created_at: datetime
    updated_at: datetime


class StoredFaceInfo(BaseModel):
    face_id: str
    person_id: str
    quality: dict[str, Any]
    created_at: datetime


_COLLECTION: dict[str, Any] = {
    "name": "default",
    "embedding_space": _MODEL["embedding_space"],
    "dimension": 192,
    "persons": 2,
    "faces": 3,
    "metadata": {},
    "policy": CollectionPolicy().model_dump(),
    "calibration_id": None,
    "created_at": _TIME,
}
_PERSON: dict[str, Any] = {
    "person_id": "obama",
    "metadata": {"office": "president"},
    "faces": 2,
    "created_at": _TIME,
    "updated_at": _TIME,
}
_STORED: dict[str, Any] = {
    "face_id": "7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11",
    "person_id": "obama",
    "quality": _QUALITY,
    "created_at": _TIME,
}


class CollectionAnswer(Answer, CollectionInfo):
    model_config = _example(**_COLLECTION)


class CalibrationSource(BaseModel):
    """The faces it was counted on."""

    kind: Annotated[str, Field(description="photos, or the collection itself.")]
    name: str
    persons: int
    faces: int
    person_pairs: Annotated[float, Field(description="Pairs of different people compared.")]
    mated_persons: Annotated[int, Field(description="People with two faces or more.")]
    digest: Annotated[str, Field(description="SHA-256 of their embeddings.")]
    left_out: Annotated[int, Field(description="Pairs of ids left out as probably one person.")]


class OperatingPointInfo(BaseModel):
    """A threshold for an error rate, and what it costs in missed matches."""

    target: float
    threshold: Annotated[
        float | None, Field(description="Null: the calibration does not reach so far.")
    ]
    extrapolated: bool = False
    fnmr: Annotated[
        float | None, Field(description="Mated comparisons missed; null where none were counted.")
    ] = None
    fnmr_interval: FmrInterval = None


class SuspectInfo(BaseModel):
    """Two ids that are probably one person (or close relatives)."""

    person_id_a: str
    person_id_b: str
    similarity: float


_OPERATING_POINT: dict[str, Any] = {
    "target": 0.0001,
    "threshold": 0.527,
    "extrapolated": False,
    "fnmr": 0.049,
    "fnmr_interval": [0.036, 0.065],
}
_CALIBRATION: dict[str, Any] = {
    "calibration_id": "cal-139201e23a15dd14",
    "calibration_source": "collection",
    "embedding_space": _MODEL["embedding_space"],
    "precision": "float32",
    "created_at": _TIME,
    "source": {
        "kind": "collection",
        "name": "default",
        "persons": 812,
        "faces": 1904,
        "person_pairs": 329265,
        "mated_persons": 401,
        "digest": "0" * 64,
        "left_out": 1,
    },
    "template_exponent": 0.81,
    "searched": {"persons": 812, "faces": 1904},
    "fmr": [_OPERATING_POINT],
    "fpir": [{**_OPERATING_POINT, "target": 0.01, "threshold": 0.578}],
}


class CalibrationAnswer(Answer):
    """The calibration behind a collection's decisions; all its members are null without one."""

    model_config = _example(**_CALIBRATION)
    calibration_id: str | None = None
    calibration_source: Literal["collection", "pack"] | None = None
    embedding_space: str | None = None
    precision: str | None = None
    created_at: datetime | None = None
    source: CalibrationSource | None = None
    template_exponent: Annotated[
        float | None,
        Field(description="m faces of a person are mistaken as often as m to this power people."),
    ] = None
    searched: Extent
    fmr: Annotated[list[OperatingPointInfo], Field(description="For target_fmr.")] = []
    fpir: Annotated[
        list[OperatingPointInfo], Field(description="For target_fpir at the collection's size now.")
    ] = []


class NewCalibrationAnswer(CalibrationAnswer):
    model_config = _example(
        **_CALIBRATION,
        suspected_duplicates=[
            {"person_id_a": "j.smith", "person_id_b": "john.smith", "similarity": 0.86}
        ],
    )
    suspected_duplicates: Annotated[
        list[SuspectInfo], Field(description="Look at these: two ids, probably one person.")
    ] = []


class PersonAnswer(Answer, PersonInfo):
    model_config = _example(**_PERSON)


class StoredFaceAnswer(Answer, StoredFaceInfo):
    model_config = _example(**_STORED)


class _Listed(Answer):
    next_cursor: Annotated[
        str | None, Field(description="Give it as `cursor` for the next page; null at the end.")
    ] = None


class CollectionList(_Listed):
    model_config = _example(items=[_COLLECTION], next_cursor=None)
    items: list[CollectionInfo]


class PersonList(_Listed):
    model_config = _example(items=[_PERSON], next_cursor=None)
    items: list[PersonInfo]


class StoredFaceList(_Listed):
    model_config = _example(items=[_STORED], next_cursor=None)
    items: list[StoredFaceInfo]


class DeletionReceipt(Answer):
    """What a deletion removed; searches no longer find it."""

    model_config = _example(deleted={"persons": 1, "faces": 2})
    deleted: dict[str, int]


class Problem(BaseModel):
    """RFC 9457 problem document; `code` is stable, further members depend on it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:likeness:problem:no_face",
                    "title": "No face was found",
                    "status": 422,
                    "detail": "No face was found in the photo; send one where the face is at "
                    "least 32 pixels wide, upright and not covered.",
                    "code": "no_face",
                    "request_id": "0d7c4c0b2c5f4c0c8f5d3b1f8e6a9b7d",
                }
            ]
        },
    )
    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None
