"""Photos made worse in ways that happen, for the strata of an attestation."""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from app.errors import UnreadableImage
from app.imaging import ImageLimits, decode_image
from app.types import Image

Change = Callable[[bytes], bytes]

_LIMITS = ImageLimits(max_bytes=64 * 1024 * 1024, max_pixels=100_000_000)


def _blur(image: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 4.0), np.uint8)


def _darken(image: Image) -> Image:
    return (image * 0.1).astype(np.uint8)


def _turn(image: Image) -> Image:
    return np.ascontiguousarray(image[::-1, ::-1])


def _png(made: Callable[[Image], Image]) -> Change:
    def change(photo: bytes) -> bytes:
        # The fastest level: these bytes live for a moment only.
        return _encoded(made(decode_image(photo, _LIMITS)), ".png", cv2.IMWRITE_PNG_COMPRESSION, 1)

    return change


def _jpeg_10(photo: bytes) -> bytes:
    return _encoded(decode_image(photo, _LIMITS), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 10)


def _encoded(image: Image, suffix: str, option: int, value: int) -> bytes:
    done, encoded = cv2.imencode(suffix, image, [option, value])
    if not done:
        raise UnreadableImage("The changed photo cannot be encoded.")
    return encoded.tobytes()


# By name; lengths are in pixels of the photo. Each takes and gives an encoded photo, and raises the
# ImageError family.
STRATA: Mapping[str, Change] = {
    "blur sigma 4 px": _png(_blur),
    "brightness x 0.1": _png(_darken),
    "JPEG quality 10": _jpeg_10,
    "turned 180 degrees": _png(_turn),
}
