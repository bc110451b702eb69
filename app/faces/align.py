"""Alignment: the similarity transform that carries five landmarks onto the ArcFace template."""

import cv2
import numpy as np
from numpy.typing import NDArray

from app.types import FloatArray, Image

# The five points of a 112 x 112 ArcFace crop: eyes, nose tip, mouth corners, left to right as
# seen in the image (Deng et al., "ArcFace", CVPR 2019, and its published reference code).
ARCFACE_TEMPLATE: FloatArray = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    dtype=np.float32,
)
TEMPLATE_SIZE = 112


def similarity_transforms(landmarks: FloatArray, target: FloatArray) -> NDArray[np.float64]:
    """The least-squares similarities that carry (n, k, 2) points onto `target` (k, 2).

    Closed form of S. Umeyama, "Least-squares estimation of transformation parameters between two
    point patterns", IEEE PAMI 13(4), 1991, in two dimensions, where rotation and scale are one
    complex number. Reflections are never produced. Returns (n, 2, 3) matrices; points that
    coincide give a matrix of zeros and the target's centre.
    """
    source = np.asarray(landmarks, dtype=np.float64)
    goal = np.asarray(target, dtype=np.float64)
    source_mean = source.mean(axis=1, keepdims=True)
    goal_mean = goal.mean(axis=0)
    a, b = source - source_mean, goal - goal_mean
    spread = (a**2).sum(axis=(1, 2))
    cosine = (a * b).sum(axis=(1, 2))
    sine = (a[:, :, 0] * b[:, 1] - a[:, :, 1] * b[:, 0]).sum(axis=1)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    c, s = cosine * scale, sine * scale
    rotation = np.stack([np.stack([c, -s], axis=-1), np.stack([s, c], axis=-1)], axis=1)
    translation = goal_mean - np.einsum("nij,nj->ni", rotation, source_mean[:, 0])
    return np.concatenate([rotation, translation[:, :, np.newaxis]], axis=2)


def enlargement(landmarks: FloatArray, size: int = TEMPLATE_SIZE) -> NDArray[np.float64]:
    """How many pixels of its crop one pixel of each of the (n, 5, 2) faces becomes, shape (n,)."""
    target = ARCFACE_TEMPLATE * (size / TEMPLATE_SIZE)
    matrices = similarity_transforms(landmarks, target)
    return np.hypot(matrices[:, 0, 0], matrices[:, 0, 1])


def align_faces(image: Image, landmarks: FloatArray, size: int = TEMPLATE_SIZE) -> Image:
    """Cut (n, 5, 2) faces out of a BGR image as (n, size, size, 3) uint8 crops."""
    target = ARCFACE_TEMPLATE * (size / TEMPLATE_SIZE)
    return cut_faces(image, similarity_transforms(landmarks, target), size)


def cut_faces(image: Image, matrices: NDArray[np.float64], size: int) -> Image:
    """The (n, size, size, 3) uint8 crops that (n, 2, 3) affine maps take out of a BGR image."""
    crops = np.empty((len(matrices), size, size, 3), dtype=np.uint8)
    for crop, matrix in zip(crops, matrices, strict=True):
        cv2.warpAffine(image, matrix, (size, size), dst=crop)
    return crops
