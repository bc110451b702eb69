"""Aligned faces as PNG files, every pixel as the recogniser saw it."""

import cv2
import numpy as np

from app.types import Image


def encode_crop(crop: Image) -> bytes:
    """The PNG file of an aligned face, BGR."""
    _, encoded = cv2.imencode(".png", crop)
    return encoded.tobytes()


def decode_crop(data: bytes) -> Image:
    """The aligned face of such a file, BGR."""
    crop = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert crop is not None, "encode_crop wrote it"
    return np.asarray(crop, np.uint8)
