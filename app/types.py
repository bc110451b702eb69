"""Frozen values that the layers of the service pass to one another.

Images are `uint8` arrays of shape (height, width, 3), BGR, upright. Coordinates are pixels of
that array, x to the right and y down, as float32. Embeddings are L2-normalised float32 vectors.
"""

import sys
from collections.abc import Generator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
FloatArray = NDArray[np.float32]

JsonObject = Mapping[str, Any]

MAX_DIMENSION = 8192  # numbers of an embedding

# One number for all channels of an image, or one each in the order a network takes them.
Channels: TypeAlias = float | tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class PixelScale:
    """What a network takes of pixels: (value - mean) / std, in RGB or BGR order."""

    mean: Channels
    std: Channels
    rgb: bool


T = TypeVar("T")
# A cooperative task: at each `yield` other work can run; it ends by returning its result.
CooperativeTask: TypeAlias = Generator[None, None, T]


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An upright photo of width x height pixels, of which `pixels` may be a reduced copy.

    One pixel of the copy covers `reduction` x `reduction` of the photo, from the photo's corner on;
    the last row and column may reach beyond its edge.
    """

    pixels: Image
    width: int
    height: int
    reduction: int = 1


@dataclass(frozen=True, slots=True)
class Detections:
    """Faces of one image as parallel arrays, best score first.

    boxes: (n, 4) x1, y1, x2, y2; landmarks: (n, 5, 2) right eye, left eye, nose tip, right and
    left mouth corner as seen in the image from left to right, or None where the detector has no
    landmark head; scores: (n,) in 0…1.
    """

    boxes: FloatArray
    scores: FloatArray
    landmarks: FloatArray | None

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, indices: NDArray[np.intp]) -> "Detections":
        """The detections at `indices`, in that order."""
        landmarks = None if self.landmarks is None else self.landmarks[indices]
        return Detections(self.boxes[indices], self.scores[indices], landmarks)


@dataclass(frozen=True, slots=True)
class Quality:
    """What can be said of a face's usefulness before it is compared with another.

    `face_size_px` is the shorter side of the box; angles are degrees (0 = frontal); `sharpness` and
    `brightness` are measured on the aligned crop; `embedding_norm` is the length of the
    recogniser's raw output, None where the face was not embedded; `liveness` is the probability
    (0…1) that the face is live, and `quality_score` the output of a quality network, None where the
    pack has no such network or was not asked. See `app.faces.quality` and `app.faces.liveness`.
    """

    face_size_px: float
    yaw: float
    pitch: float
    roll: float
    sharpness: float
    brightness: float
    detector_score: float
    embedding_norm: float | None = None
    liveness: float | None = None
    quality_score: float | None = None

    @classmethod
    def read(cls, stored: Mapping[str, object]) -> "Quality | None":
        """The quality stored with a template. None if a measure is missing or not a number, as for
        embeddings that were enrolled without a photo. Other members are ignored."""
        numbers: dict[str, Any] = {name: _number(stored.get(name)) for name in _MEASURES}
        if any(numbers[name] is None for name in _ALWAYS_MEASURED):
            return None
        return cls(**numbers)


_MEASURES = tuple(field.name for field in fields(Quality))
_ALWAYS_MEASURED = tuple(field.name for field in fields(Quality) if field.default is MISSING)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None  # NaN and too long an integer


@dataclass(frozen=True, slots=True)
class Face:
    """One face of one image. `embedding` is None where only detection was asked for, `crop` (the
    aligned face) where nobody asked to keep it. `rotation` (0, 90, 180, 270): by how many degrees
    clockwise the image was turned to be upright; box and landmarks are of the image as it was."""

    box: FloatArray
    landmarks: FloatArray
    score: float
    quality: Quality
    embedding: FloatArray | None = None
    crop: Image | None = None
    rotation: int = 0


@dataclass(frozen=True, slots=True)
class AnalysedImage:
    """One image after the pipeline: its upright size in pixels and its faces, largest first.

    `faces_found`: how many faces the detector found. `faces` may have fewer of them: only the
    selected one, or no more than were asked for.
    """

    width: int
    height: int
    faces: tuple[Face, ...]
    timings_ms: Mapping[str, float]
    faces_found: int
