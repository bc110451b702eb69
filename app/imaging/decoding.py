"""Bytes of one photo -> upright BGR array, with every limit checked before anything is decoded.

Pillow reads the header and decodes: unlike OpenCV's decoder it refuses truncated files instead of
filling the rest with grey, and it knows the size before it allocates.
"""

import io
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags
from PIL import Image as PillowImage

from app.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from app.imaging.formats import FORMATS, check_format
from app.imaging.limits import ImageLimits, check_bytes, check_size, too_many_pixels
from app.types import DecodedImage, Image

_WHITE = (255, 255, 255, 255)
_SIXTEEN_BIT_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")

# What brings a picture upright, by its EXIF orientation (CIPA DC-008, "Orientation"); 1 is upright.
_TURNS = {
    2: PillowImage.Transpose.FLIP_LEFT_RIGHT,
    3: PillowImage.Transpose.ROTATE_180,
    4: PillowImage.Transpose.FLIP_TOP_BOTTOM,
    5: PillowImage.Transpose.TRANSPOSE,
    6: PillowImage.Transpose.ROTATE_270,
    7: PillowImage.Transpose.TRANSVERSE,
    8: PillowImage.Transpose.ROTATE_90,
}

# What libjpeg can leave out while it decodes (its DCT scaling), most first.
_JPEG_REDUCTIONS = (8, 4, 2)

# Pillow has a guard of its own, above ours: its wording would mean nothing to a client.
_PIXEL_GUARD = PillowImage.DecompressionBombError


def decode_image(data: bytes, limits: ImageLimits) -> Image:
    """Decode one JPEG, PNG or WebP to a contiguous uint8 array (height, width, 3), BGR.

    EXIF orientation is applied; transparency is laid on white; 16-bit, palette, grey and CMYK
    become 8-bit BGR; of an animation the first frame is taken.

    Raises EmptyImage, UnsupportedImage, ImageTooLarge or UnreadableImage.
    """
    return decode_at_least(data, limits, None).pixels


def decode_at_least(data: bytes, limits: ImageLimits, enough: int | None) -> DecodedImage:
    """The same, and where `enough` pixels on the longer side do, a JPEG may come reduced to a half,
    a quarter or an eighth, never to less than that; much faster, and free of aliasing."""
    check_bytes(data, limits)
    check_format(data)
    try:
        with PillowImage.open(io.BytesIO(data), formats=FORMATS) as picture:
            check_size(*picture.size, limits)
            width, height = picture.size
            reduction = _reduce(picture, enough)
            picture.load()
            upright = _upright(picture)
            if upright.size != picture.size:  # a quarter turn; a square's sides are equal anyway
                width, height = height, width
            pixels = _to_bgr(upright)
    except _PIXEL_GUARD as error:
        raise too_many_pixels("The image has far too many pixels", limits) from error
    except (UnsupportedImage, ImageTooLarge):
        raise
    except Exception as error:  # decoders raise anything from struct.error to SyntaxError
        raise UnreadableImage(
            "The image is damaged or incomplete and could not be decoded; send the whole file."
        ) from error
    return DecodedImage(pixels, width, height, reduction)


def _reduce(picture: PillowImage.Image, enough: int | None) -> int:
    """Ask the decoder for fewer pixels; one pixel for how many of the photo's there will be."""
    if picture.format != "JPEG" or enough is None:
        return 1
    width, height = picture.size
    for reduction in _JPEG_REDUCTIONS:
        enough_left = max(width, height) >= reduction * enough and min(width, height) >= reduction
        # What does not divide is filled up at the far sides, which a turn could make the near ones.
        divides = width % reduction == 0 and height % reduction == 0
        if enough_left and (divides or _turn_of(picture) is None):
            # The decoder may leave out more where a side is short: it is told what it may reach.
            _, box = picture.draft(None, (width // reduction, height // reduction)) or ("", None)
            return round(width / box[2]) if box else 1
    return 1


def _upright(picture: PillowImage.Image) -> PillowImage.Image:
    """Apply the EXIF orientation; damaged EXIF data counts as none, the pixels are still good.

    `ImageOps.exif_transpose` would also rewrite the EXIF data, and fail for a photo with a good
    orientation beside one damaged tag.
    """
    turn = _turn_of(picture)
    return picture if turn is None else picture.transpose(turn)


def _turn_of(picture: PillowImage.Image) -> PillowImage.Transpose | None:
    try:
        orientation: Any = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - any malformed tag: the photo is shown as stored
        return None
    return _TURNS.get(orientation)


def _to_bgr(picture: PillowImage.Image) -> Image:
    if picture.mode in _SIXTEEN_BIT_GREY:
        grey = (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
        return np.ascontiguousarray(np.repeat(grey[:, :, np.newaxis], 3, axis=2))
    if picture.has_transparency_data:
        picture = _on_white(picture)
    rgb = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), dtype=np.uint8)


def _on_white(picture: PillowImage.Image) -> PillowImage.Image:
    rgba = picture.convert("RGBA")
    return PillowImage.alpha_composite(PillowImage.new("RGBA", rgba.size, _WHITE), rgba)
