"""Quarter turns of an image and of what was found in it. Angles are degrees clockwise."""

import numpy as np

from app.types import Detections, FloatArray, Image

ROTATIONS = (0, 90, 180, 270)


def inverse(rotation: int) -> int:
    """The turn that undoes another."""
    return -rotation % 360


def turned_size(shape: tuple[int, ...], rotation: int) -> tuple[int, int]:
    """Height and width after a turn, of an image whose shape begins with height and width."""
    height, width = shape[:2]
    return (width, height) if rotation % 180 else (height, width)


def turned_image(image: Image, rotation: int) -> Image:
    """A turned view of an image; no pixel is copied."""
    return np.rot90(image, -rotation // 90)


def turned_detections(found: Detections, rotation: int, height: int, width: int) -> Detections:
    """What was found in an image of that size, in the pixels of the turned image.

    Boxes are edges, from 0 to the image's width; landmarks are pixels, from 0 to one less.
    """
    if rotation == 0:
        return found
    size = np.array([width, height], np.float32)
    corners = _turned(found.boxes.reshape(-1, 2, 2), rotation, size)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    landmarks = found.landmarks
    if landmarks is not None:
        landmarks = _turned(landmarks, rotation, size - 1)
    return Detections(boxes, found.scores, landmarks)


def _turned(points: FloatArray, rotation: int, end: FloatArray) -> FloatArray:
    """Points (..., 2) of an area that ends at `end`."""
    x, y = points[..., 0], points[..., 1]
    turned = {
        90: (end[1] - y, x),
        180: (end[0] - x, end[1] - y),
        270: (y, end[0] - x),
    }[rotation]
    return np.stack(turned, axis=-1)
