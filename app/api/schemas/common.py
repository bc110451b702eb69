"""What several answers share, and the examples they are made of."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.problems import problem_codes


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
        float | None,
        Field(description="Length of the raw embedding; small values mean low confidence."),
    ] = None
    liveness: Annotated[
        float | None,
        Field(description="Chance that the face is live, 0 to 1; null where it was not requested."),
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
    """One face. Coordinates are pixels of the image with its EXIF orientation applied, from the
    top left; `quality` is of the upright face."""

    image_index: int
    box: Annotated[list[float], Field(min_length=4, max_length=4, description="x1, y1, x2, y2")]
    box_normalised: Annotated[
        list[float], Field(min_length=4, max_length=4, description="The box in shares of the image")
    ]
    landmarks: Annotated[
        list[list[float]],
        Field(
            description="Eyes, nose tip, mouth corners as x, y; left to right in the upright image."
        ),
    ]
    rotation: Annotated[
        Literal[0, 90, 180, 270],
        Field(
            description="Degrees clockwise by which the image was turned to be upright, where its "
            "EXIF data does not say; box and landmarks are of the image before."
        ),
    ]
    score: float
    quality: QualityInfo
    degradation: Annotated[
        float | None,
        Field(
            description="How far its embedding leans towards those of blurred, dark and "
            "upside-down faces, -1 to 1: below 0.25 for 99 of 100 good photos. Null without an "
            "embedding, or where the calibration has no domain."
        ),
    ] = None


class Extent(BaseModel):
    persons: int
    faces: int


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
MODEL: dict[str, Any] = {
    "pack": "default",
    "version": "1.0.0",
    "embedding_space": "es-038d0789502f026c",
}
EXAMPLE_HEAD: dict[str, Any] = {
    "request_id": "0d7c4c0b2c5f4c0c8f5d3b1f8e6a9b7d",
    "model": MODEL,
    "timings_ms": {"decode": 11.8, "detect": 50.9, "align": 0.4, "embed": 12.6, "total": 77.9},
}
QUALITY: dict[str, Any] = {
    "face_size_px": 251.0,
    "yaw": 4.6,
    "pitch": -1.9,
    "roll": -2.4,
    "sharpness": 1993.3,
    "brightness": 0.6,
    "detector_score": 0.92,
    "embedding_norm": 75.0,
}
FACE: dict[str, Any] = {
    "image_index": 0,
    "box": [368.0, 85.0, 619.0, 434.0],
    "box_normalised": [0.404, 0.075, 0.68, 0.382],
    "landmarks": [[436.1, 224.0], [547.6, 218.2], [496.0, 290.3], [448.2, 343.9], [547.0, 339.5]],
    "rotation": 0,
    "score": 0.92,
    "quality": QUALITY,
    "degradation": -0.04,
}
IMAGE: dict[str, Any] = {"index": 0, "width": 910, "height": 1137, "faces": 1, "error": None}
TIME = "2026-11-23T12:00:00Z"


def example(**members: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [{**EXAMPLE_HEAD, **members}]})


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
    code: Annotated[str, Field(json_schema_extra={"enum": list(problem_codes())})]
    request_id: str | None
