"""A drawn face: always the same pixels, for comparing what two engines answer."""

import cv2
import numpy as np

from app.types import Image


def drawn_face(height: int, width: int) -> Image:
    """A frontal face on a plain ground, (height, width, 3) BGR uint8; it fills 0.9 of the shorter
    side, as in an aligned crop."""
    side = 256
    face = np.full((side, side, 3), (150, 140, 120), np.uint8)
    _ellipse(face, (128, 118), (88, 112), (35, 45, 60))  # hair
    _ellipse(face, (128, 138), (74, 98), (135, 165, 215))
    for x in (94, 162):
        _ellipse(face, (x, 106), (20, 5), (40, 50, 70))  # brow
        _ellipse(face, (x, 120), (15, 8), (235, 240, 240))
        _ellipse(face, (x, 120), (7, 7), (40, 50, 60))
    _ellipse(face, (128, 150), (11, 24), (110, 140, 195))  # nose
    _ellipse(face, (128, 172), (16, 6), (90, 115, 170))
    _ellipse(face, (128, 196), (30, 9), (90, 85, 175))  # mouth
    light = np.linspace(1.1, 0.75, side, dtype=np.float32)[np.newaxis, :, np.newaxis]
    face = cv2.GaussianBlur(np.clip(face * light, 0, 255).astype(np.uint8), (0, 0), 2.5)
    fitting = min(height, width)
    scaled = cv2.resize(face, (fitting, fitting), interpolation=cv2.INTER_AREA)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = face[0, 0]
    top, left = (height - fitting) // 2, (width - fitting) // 2
    image[top : top + fitting, left : left + fitting] = scaled
    return image


def _ellipse(
    image: Image, centre: tuple[int, int], axes: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    cv2.ellipse(image, centre, axes, 0, 0, 360, colour, cv2.FILLED)
