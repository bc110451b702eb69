"""Corrected landmarks: a second network takes each face alone and corrects its five landmarks.

MTCNN's ONet (Zhang et al., IEEE Signal Processing Letters 23(10), 2016). It sees the face upright
and at one size, by a similarity transform from the detector's landmarks, and its mirror image. The
mean of both answers is averaged with the detector's landmarks.
"""

import numpy as np
from numpy.typing import NDArray

from app.errors import PackError
from app.faces.images import (
    ARCFACE_TEMPLATE,
    blank_crops,
    cut_faces,
    first_answer,
    run_on_crops,
    similarity_transforms,
    with_mirror_images,
)
from app.inference.pack_spec import LandmarkSpec
from app.inference.session import Network
from app.types import FloatArray, Image, PixelScale

SIDE = 48
SCALE = PixelScale(127.5, 128.0, rgb=True)
# The square that the network sees, in pixels of a 112 x 112 ArcFace crop: its corner and its side.
_CORNER, _REGION = np.array([4.0, 12.0], np.float32), 104.0
TARGET: FloatArray = (ARCFACE_TEMPLATE - _CORNER) * np.float32(SIDE / _REGION)
# The right eye of a mirrored face is the left one.
_MIRRORED = [1, 0, 2, 4, 3]


class LandmarkRefiner:
    """ONet of a model pack. Safe to call from several threads."""

    def __init__(self, model: Network, spec: LandmarkSpec) -> None:
        """Raises PackError when the network does not take or answer what the pack announces."""
        self._model = model
        self._weight = np.float32(spec.weight)
        with first_answer(model, SIDE, "five landmarks", "landmarks"):
            answer = self._answer(blank_crops(model, SIDE))
        if not np.isfinite(answer).all():
            raise PackError(f"{model.path} answers landmarks that are not numbers.")

    def refine(self, image: Image, landmarks: FloatArray) -> FloatArray:
        """The corrected (n, 5, 2) landmarks of faces of a BGR image, in its pixels.

        Landmarks that coincide, or that the network answers with no number, stay as they are.
        """
        if len(landmarks) == 0:
            return landmarks
        matrices = similarity_transforms(landmarks, TARGET)
        crops = cut_faces(image, matrices, SIDE)
        found = _inverse(matrices, self._both_ways(crops))
        moved = landmarks + self._weight * (found - landmarks)
        usable = np.isfinite(moved).all(axis=(1, 2), keepdims=True)
        return np.where(usable, moved, landmarks).astype(np.float32)

    def _both_ways(self, crops: Image) -> FloatArray:
        """Landmarks (n, 5, 2) in pixels of the crops (n, 48, 48, 3): the mean of what a crop and
        its mirror image show."""
        answers = self._answer(with_mirror_images(crops))
        straight, mirrored = answers[: len(crops)], answers[len(crops) :, _MIRRORED]
        mirrored[..., 0] = SIDE - 1 - mirrored[..., 0]
        return np.asarray((straight + mirrored) / 2, np.float32)

    def _answer(self, crops: Image) -> FloatArray:
        """Landmarks (n, 5, 2) in pixels of (n, 48, 48, 3) BGR crops."""
        answers = run_on_crops(self._model, crops, SCALE, len(crops))
        # x of all five, then y.
        points = answers.reshape(len(crops), 2, 5).transpose(0, 2, 1)
        return np.asarray(points * np.float32(SIDE), np.float32)


def _inverse(matrices: NDArray[np.float64], points: FloatArray) -> NDArray[np.float64]:
    """Points (n, k, 2) of crops in the image that (n, 2, 3) similarities cut them from; no numbers
    where a similarity has no inverse."""
    a, b = matrices[:, :1, 0], matrices[:, 1:, 0]
    x, y = points[:, :, 0] - matrices[:, :1, 2], points[:, :, 1] - matrices[:, 1:, 2]
    moved = np.empty(points.shape, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = a * a + b * b
        moved[:, :, 0] = (a * x + b * y) / square
        moved[:, :, 1] = (a * y - b * x) / square
    return moved
