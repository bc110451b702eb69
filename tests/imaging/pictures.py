"""Pictures for the tests of decoding, and the measure of how far two are apart."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from app.imaging import ImageLimits, decode_image

LIMITS = ImageLimits()
Pixels = NDArray[np.uint8]
ORIENTATION = 0x0112


def picture(width: int = 48, height: int = 32) -> Pixels:
    """A smooth RGB picture that no turn or mirror leaves as it is."""
    x = np.linspace(0, 1, width)[np.newaxis, :]
    y = np.linspace(0, 1, height)[:, np.newaxis]
    channels = [np.broadcast_to(c, (height, width)) for c in (x, y, (x + y * y) / 2)]
    return (np.stack(channels, axis=2) * 255).astype(np.uint8)


def saved(pixels: Pixels | PillowImage.Image, form: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, PillowImage.Image) else PillowImage.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, lines: bytes, *more: bytes) -> bytes:
    """A PNG file from its header's values and its compressed lines (RFC 2083)."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = (b"IHDR" + header, *more, b"IDAT" + lines, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def lines(rows: NDArray[Any]) -> bytes:
    """Rows of samples as PNG's unfiltered, compressed lines; 16-bit samples big-endian."""
    wide = rows.astype(">u2") if rows.dtype == np.uint16 else rows
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in wide))


def decoded_rgb(data: bytes) -> Pixels:
    return decode_image(data, LIMITS)[:, :, ::-1]


def distance(a: Pixels, b: Pixels) -> float:
    """Mean difference of two pictures, in grey levels."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def exif(orientation: int) -> bytes:
    tags = PillowImage.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


def grainy() -> Pixels:
    """Noise: its files are long, and every part of them shows."""
    return np.random.default_rng(3).integers(0, 256, (24, 32, 3), dtype=np.uint8)


SAMPLES: dict[str, bytes] = {
    "jpeg": saved(grainy(), "JPEG", quality=90, exif=exif(6)),
    "progressive": saved(grainy(), "JPEG", quality=90, progressive=True),
    "png": saved(grainy(), "PNG", exif=exif(3)),
    "palette": saved(PillowImage.fromarray(grainy()).quantize(64), "PNG", transparency=0),
    "webp": saved(grainy(), "WEBP", quality=90, exif=exif(8)),
    "webp-lossless": saved(grainy(), "WEBP", lossless=True),
    "webp-animated": saved(
        PillowImage.fromarray(grainy()),
        "WEBP",
        save_all=True,
        append_images=[PillowImage.fromarray(grainy()[::-1])],
    ),
}
