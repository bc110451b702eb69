"""HEIC and AVIF -> upright BGR array; runs in the decoder process only.

Both turn a picture by properties of the file (`irot`, `imir`), which outrank EXIF: libheif has
applied them, and Pillow reports them as the orientation.
"""

import io

import numpy as np
import pi_heif
from numpy.typing import NDArray
from PIL import Image as PillowImage

from app.imaging.decoding import image_errors, turn_of
from app.imaging.formats import Header
from app.imaging.limits import ImageLimits, check_opened, damaged
from app.imaging.pixels import array_to_bgr, picture_to_bgr
from app.types import DecodedImage, Image


def decode_boxed(header: Header, data: bytes, limits: ImageLimits) -> DecodedImage:
    """Decode a photo whose bytes and header were checked. Raises ImageTooLarge,
    UnreadableImage or MemoryError."""
    with image_errors(limits):
        decode = _decode_heic if header.format == "HEIC" else _decode_avif
        pixels = decode(header, data, limits)
    return DecodedImage(pixels, pixels.shape[1], pixels.shape[0])


def _decode_heic(header: Header, data: bytes, limits: ImageLimits) -> Image:
    # Photos run side by side as it is, and thumbnails and depths are of no use.
    pi_heif.options.DECODE_THREADS = 1
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False
    file = pi_heif.open_heif(data, bgr_mode=True)
    photo = file[file.primary_index]
    check_opened(photo.size, header, limits)
    # A copy: the array that it gives does not keep the memory alive in which its pixels lie.
    stored: NDArray[np.generic] = np.array(photo)
    if stored.dtype != np.uint8:
        stored = (stored >> 8).astype(np.uint8)  # type: ignore[operator]
    if photo.mode.startswith("L") and stored.ndim == 3:
        stored = stored[:, :, [0, 0, 0, 1]]
    if photo.mode.endswith("a"):
        return _premultiplied_on_white(np.asarray(stored, np.uint8))
    return array_to_bgr(np.asarray(stored, np.uint8))


def _decode_avif(header: Header, data: bytes, limits: ImageLimits) -> Image:
    with PillowImage.open(io.BytesIO(data), formats=("AVIF",)) as picture:
        check_opened(picture.size, header, limits)
        picture.info.pop("xmp", None)
        picture.load()
        return picture_to_bgr(picture, turn_of(picture))


def _premultiplied_on_white(pixels: Image) -> Image:
    if pixels.shape[2] != 4:
        raise damaged()
    white = 255 - pixels[:, :, 3:]
    whole = np.minimum(pixels[:, :, :3].astype(np.uint16) + white, 255)
    return np.asarray(whole, np.uint8)
