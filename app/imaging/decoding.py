"""Bytes of one photo -> upright BGR array, in this process.

Pillow reads the headers and decodes: unlike OpenCV's decoders it refuses truncated files instead of
filling the rest with grey, and it knows the size before it allocates. Still WebP pictures, which
OpenCV refuses as well when they are cut, are decoded by OpenCV: the same pixels in half the memory.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags
from PIL import Image as PillowImage

from app.errors import ImageError
from app.imaging import jpeg
from app.imaging.formats import Header
from app.imaging.limits import ImageLimits, check_opened, damaged, too_many_pixels
from app.imaging.pixels import TURNS, UPRIGHT, Turn, array_to_bgr, picture_to_bgr
from app.imaging.png import without_comments
from app.types import DecodedImage

# What libjpeg can leave out while it decodes (its DCT scaling), most first.
_JPEG_REDUCTIONS = (8, 4, 2)

# Pillow has a guard of its own, above ours: its wording would mean nothing to a client.
_PIXEL_GUARD = PillowImage.DecompressionBombError

# Coded data that could follow the end of a file: no codes at all, every bit both ways, and noise.
_CONTINUATIONS = (
    bytes(96),
    bytes.fromhex("5593 2d1e c874 b06a 39d5 8ef2") * 8,
    bytes.fromhex("aa6c d2e1 378b 4f95 c62a 710d") * 8,
    bytes.fromhex("e41b 0a9f d7c2 6835 b94e 1283") * 8,
)


def decode_here(
    header: Header, data: bytes, limits: ImageLimits, enough: int | None = None
) -> DecodedImage:
    """Decode a photo whose bytes and header were checked, reduced where `enough` allows it.

    Raises ImageTooLarge, UnreadableImage or MemoryError.
    """
    with image_errors(limits):
        match header.format:
            case "JPEG":
                return _decode_jpeg(header, data, limits, enough)
            case "PNG":
                return _decode_picture(header, without_comments(data), limits)
            case "WEBP":
                return _decode_webp(header, data, limits)
            case _:
                raise AssertionError(f"{header.format} is none of FORMATS")


@contextmanager
def image_errors(limits: ImageLimits) -> Iterator[None]:
    """Whatever a decoder raises, as ImageTooLarge or UnreadableImage. MemoryError stays what it is:
    it is no fault of the photo."""
    try:
        yield
    except _PIXEL_GUARD as error:
        raise too_many_pixels("The image has far too many pixels", limits) from error
    except (ImageError, AssertionError, MemoryError):
        raise
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError
        raise damaged() from error


def _decode_picture(
    header: Header, data: bytes, limits: ImageLimits, enough: int | None = None
) -> DecodedImage:
    with PillowImage.open(io.BytesIO(data), formats=(header.format,)) as picture:
        width, height = picture.size
        check_opened(picture.size, header, limits)
        reduction = _reduce(picture, enough)
        picture.load()
        turn = turn_of(picture)
        pixels = picture_to_bgr(picture, turn)
    if turn.transposed:
        width, height = height, width
    return DecodedImage(pixels, width, height, reduction)


def _decode_jpeg(
    header: Header, data: bytes, limits: ImageLimits, enough: int | None
) -> DecodedImage:
    try:
        return _decode_picture(header, data, limits, enough)
    except OSError:
        if jpeg.ends(data) or not jpeg.is_complete(data):
            raise
    return _decode_endless_jpeg(header, data.rstrip(b"\xff"), limits)


def _decode_endless_jpeg(header: Header, data: bytes, limits: ImageLimits) -> DecodedImage:
    """Decode a JPEG that may lack nothing but its end marker: then no pixel depends on what comes
    next. Raises UnreadableImage where one does."""
    known, photo = b"", None
    for more in _CONTINUATIONS:
        photo = None  # one at a time in memory
        photo = _decode_picture(header, data + more + jpeg.END_OF_IMAGE, limits)
        digest = hashlib.sha256(photo.pixels.data).digest()
        if known and digest != known:
            raise damaged()
        known = digest
    assert photo is not None, "there are continuations"
    return photo


def _decode_webp(header: Header, data: bytes, limits: ImageLimits) -> DecodedImage:
    with PillowImage.open(io.BytesIO(data), formats=("WEBP",)) as picture:
        check_opened(picture.size, header, limits)
        turn = turn_of(picture)
        animated = getattr(picture, "is_animated", False)
    del picture
    if animated:
        return _decode_picture(header, data, limits)
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise damaged()
    pixels = array_to_bgr(np.asarray(stored, np.uint8), turn)
    return DecodedImage(pixels, pixels.shape[1], pixels.shape[0])


def _reduce(picture: PillowImage.Image, enough: int | None) -> int:
    """Ask the decoder for fewer pixels; one pixel for how many of the photo's there will be."""
    if picture.format != "JPEG" or enough is None:
        return 1
    width, height = picture.size
    for reduction in _JPEG_REDUCTIONS:
        enough_left = max(width, height) >= reduction * enough and min(width, height) >= reduction
        # What does not divide is filled up at the far sides, which a turn could make the near ones.
        divides = width % reduction == 0 and height % reduction == 0
        if enough_left and (divides or turn_of(picture) == UPRIGHT):
            # The decoder may leave out more where a side is short: it is given the size to reach.
            _, box = picture.draft(None, (width // reduction, height // reduction)) or ("", None)
            return round(width / box[2]) if box else 1
    return 1


def turn_of(picture: PillowImage.Image) -> Turn:
    """What the EXIF orientation asks for; damaged EXIF data counts as none.

    `ImageOps.exif_transpose` would also rewrite the EXIF data, and fail for a photo with a good
    orientation beside one damaged tag.
    """
    try:
        orientation: Any = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - any malformed tag: the photo is shown as stored
        return UPRIGHT
    return TURNS.get(orientation, UPRIGHT)
