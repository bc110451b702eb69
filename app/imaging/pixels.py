"""A decoded picture -> upright BGR array, strip by strip.

A whole copy for every step (composited, converted, turned) would take four times the memory of the
result; of strips only one exists at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image as PillowImage

from app.types import Image

_WHITE = (255, 255, 255, 255)
_SIXTEEN_BIT_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# Smaller pictures are taken whole: their copies are small too.
_WHOLE_PIXELS = 1024 * 1024
# A strip and its copies stay within a processor's cache.
_STRIP_PIXELS = 128 * 1024


@dataclass(frozen=True, slots=True)
class Turn:
    """What brings a stored picture upright: first transposed, then mirrored."""

    transposed: bool = False
    left_right: bool = False
    top_bottom: bool = False

    def applied(self, strip: Image) -> Image:
        """A strip (rows, columns, 3), turned by itself."""
        if self.transposed:
            strip = np.asarray(cv2.transpose(strip), np.uint8)
        if self.left_right or self.top_bottom:
            code = -1 if self.left_right and self.top_bottom else int(self.left_right)
            strip = np.asarray(cv2.flip(strip, code), np.uint8)
        return strip


UPRIGHT = Turn()
# By EXIF orientation (CIPA DC-008, "Orientation").
TURNS = {
    1: UPRIGHT,
    2: Turn(left_right=True),
    3: Turn(left_right=True, top_bottom=True),
    4: Turn(top_bottom=True),
    5: Turn(transposed=True),
    6: Turn(transposed=True, left_right=True),
    7: Turn(transposed=True, left_right=True, top_bottom=True),
    8: Turn(transposed=True, top_bottom=True),
}


def picture_to_bgr(picture: PillowImage.Image, turn: Turn = UPRIGHT) -> Image:
    """A loaded picture of any mode as a contiguous uint8 array (height, width, 3), BGR, upright.

    Transparency is laid on white; of 16 bits the upper eight stay.
    """
    width, height = picture.size

    def strip(top: int, bottom: int) -> Image:
        whole = bottom - top == height
        return _strip_to_bgr(picture if whole else picture.crop((0, top, width, bottom)))

    return _by_strips(strip, width, height, turn)


def array_to_bgr(pixels: Image, turn: Turn = UPRIGHT) -> Image:
    """The same for BGR or BGRA pixels (height, width, 3 or 4); grey (height, width) too."""
    height, width = pixels.shape[:2]

    def strip(top: int, bottom: int) -> Image:
        part = pixels[top:bottom]
        if part.ndim == 2:
            return np.asarray(cv2.cvtColor(part, cv2.COLOR_GRAY2BGR), np.uint8)
        if part.shape[2] == 4:
            # White is the same in both orders of the colours.
            return np.asarray(_on_white(PillowImage.fromarray(part)))
        return part

    if turn == UPRIGHT and pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels
    return _by_strips(strip, width, height, turn)


def _by_strips(strip: Callable[[int, int], Image], width: int, height: int, turn: Turn) -> Image:
    """The picture whose rows from `top` to `bottom` are strip(top, bottom), turned."""
    rows = max(1, _STRIP_PIXELS // width)
    if width * height <= _WHOLE_PIXELS:
        return np.ascontiguousarray(turn.applied(strip(0, height)))
    upright = np.empty((width, height, 3) if turn.transposed else (height, width, 3), np.uint8)
    backwards = turn.left_right if turn.transposed else turn.top_bottom
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        place = slice(height - bottom, height - top) if backwards else slice(top, bottom)
        part = turn.applied(strip(top, bottom))
        if turn.transposed:
            upright[:, place] = part
        else:
            upright[place] = part
    return upright


def _strip_to_bgr(picture: PillowImage.Image) -> Image:
    if picture.mode in _SIXTEEN_BIT_GREY:
        grey = (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
        return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)
    if picture.has_transparency_data:
        picture = _on_white(picture if picture.mode == "RGBA" else picture.convert("RGBA"))
    rgb = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8)


def _on_white(rgba: PillowImage.Image) -> PillowImage.Image:
    """A strip without its transparency; most strips are of one kind, and need no arithmetic."""
    least, most = rgba.getchannel("A").getextrema()
    if most == 0:
        return PillowImage.new("RGB", rgba.size, _WHITE[:3])
    if least != 255:
        rgba = PillowImage.alpha_composite(PillowImage.new("RGBA", rgba.size, _WHITE), rgba)
    return rgba.convert("RGB")
