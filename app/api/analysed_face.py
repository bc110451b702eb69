"""Photos of a call and their faces, as answers show them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field

from app.api.responses import Example
from app.errors import LikenessError
from app.index.comparator import Comparator
from app.recognition.analysis import FoundFace, PhotoOutcome
from app.types import Quality

_MEASURES = tuple(field.name for field in fields(Quality))


class QualityInfo(BaseModel):
    face_size_px: Annotated[
        float, Field(description="Shorter side of the box in pixels."), Example(251.0)
    ]
    yaw: Annotated[
        float, Field(description="Degrees, positive towards the picture's right."), Example(4.6)
    ]
    pitch: Annotated[float, Field(description="Degrees, positive downwards."), Example(-1.9)]
    roll: Annotated[float, Field(description="Degrees, positive clockwise."), Example(-2.4)]
    sharpness: Annotated[
        float, Field(description="Variance of the Laplacian of the crop."), Example(1993.3)
    ]
    brightness: Annotated[
        float, Field(description="Mean luma of the crop's middle, 0 to 1."), Example(0.6)
    ]
    detector_score: Annotated[float, Example(0.92)]
    embedding_norm: Annotated[
        float | None,
        Field(description="Length of the raw embedding; small values mean low confidence."),
        Example(75.0),
    ] = None
    liveness: Annotated[
        float | None,
        Field(
            description="Probability that the face is live, 0 to 1; null if it was not requested."
        ),
    ] = None
    quality_score: Annotated[
        float | None,
        Field(description="Output of the pack's quality network; null if it has none."),
    ] = None

    @classmethod
    def of(cls, quality: Quality) -> Self:
        """The measures of a face, by the same names, rounded to what they are worth."""
        return cls(**rounded_measures({name: getattr(quality, name) for name in _MEASURES}))


def rounded_measures(quality: Mapping[str, Any]) -> dict[str, Any]:
    """Measures rounded to what they are worth."""
    return {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in quality.items()
    }


class ImageInfo(BaseModel):
    """One image of the call. `error` says why it could not be used."""

    index: Annotated[int, Example(0)]
    width: Annotated[int | None, Example(910)] = None
    height: Annotated[int | None, Example(1137)] = None
    faces: Annotated[int, Example(1)] = 0
    error: Annotated[dict[str, Any] | None, Example(None)] = None

    @classmethod
    def of(cls, index: int, outcome: PhotoOutcome) -> Self:
        """The image with that number, read or refused."""
        if isinstance(outcome, LikenessError):
            error = {"code": outcome.code, "detail": outcome.detail, **outcome.extra}
            return cls(index=index, error=error)
        return cls(
            index=index, width=outcome.width, height=outcome.height, faces=len(outcome.faces)
        )


class FaceInfo(BaseModel):
    """One face. Coordinates are pixels of the image with its EXIF orientation applied, from the
    top left; `quality` is of the upright face."""

    image_index: Annotated[int, Example(0)]
    box: Annotated[
        list[float],
        Field(min_length=4, max_length=4, description="x1, y1, x2, y2"),
        Example([368.0, 85.0, 619.0, 434.0]),
    ]
    box_normalised: Annotated[
        list[float],
        Field(
            min_length=4,
            max_length=4,
            description="The box as fractions of the image's width and height.",
        ),
        Example([0.404, 0.075, 0.68, 0.382]),
    ]
    landmarks: Annotated[
        list[list[float]],
        Field(
            description="Eyes, nose tip, mouth corners as x, y; left to right in the upright image."
        ),
        Example([[436.1, 224.0], [547.6, 218.2], [496.0, 290.3], [448.2, 343.9], [547.0, 339.5]]),
    ]
    rotation: Annotated[
        Literal[0, 90, 180, 270],
        Field(
            description=(
                "By how many degrees clockwise the service turned the image, after applying "
                "its EXIF orientation, to make it upright; box and landmarks are positions in "
                "the image before this turn."
            )
        ),
        Example(0),
    ]
    score: Annotated[float, Example(0.92)]
    quality: QualityInfo
    degradation: Annotated[
        float | None,
        Field(
            description=(
                "How much its embedding has in common with those of blurred, dark and "
                "upside-down faces, -1 to 1: below 0.25 for 99 of 100 good photos. Null "
                "without an embedding, or if the calibration has no domain."
            )
        ),
        Example(-0.04),
    ] = None
    covering: Annotated[
        float | None,
        Field(
            description=(
                "How much its embedding resembles those of faces whose lower half is covered, "
                "by a mask for example, 0 to 1: 0 for 80 of 100 uncovered faces, 1 for most "
                "covered ones. Null without an embedding, or if the calibration has no such "
                "part."
            )
        ),
        Example(0.02),
    ] = None

    @classmethod
    def of(cls, found: FoundFace, comparator: Comparator, **others: Any) -> Self:
        """One face of an analysed image; `others`: the members of a subclass."""
        index, image, face = found
        degradation = None if face.embedding is None else comparator.degradation_of(face.embedding)
        covering = None if face.embedding is None else comparator.covering_of(face.embedding)
        x1, y1, x2, y2 = face.box.tolist()
        return cls(
            image_index=index,
            box=[round(value, 2) for value in (x1, y1, x2, y2)],
            box_normalised=[
                round(x1 / image.width, 6),
                round(y1 / image.height, 6),
                round(x2 / image.width, 6),
                round(y2 / image.height, 6),
            ],
            landmarks=[[round(x, 2), round(y, 2)] for x, y in face.landmarks.tolist()],
            rotation=face.rotation,
            score=round(face.score, 4),
            quality=QualityInfo.of(face.quality),
            degradation=None if degradation is None else round(degradation, 4),
            covering=None if covering is None else round(covering, 4),
            **others,
        )
