"""Small files of every format and kind, as seeds for damage, and the damage."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

HEIC = Path(__file__).parents[1] / "data" / "heic"
# Sizes and lengths that have broken decoders before.
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def _saved(image: PillowImage.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _exif() -> bytes:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    return exif.tobytes()


def seeds() -> dict[str, list[bytes]]:
    """Some files of each format, by its name."""
    noise = np.random.default_rng(3).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    rgba = PillowImage.fromarray(noise)
    rgb, exif = rgba.convert("RGB"), _exif()
    frames = {"save_all": True, "append_images": [rgb.transpose(0)], "duration": 40}
    jpeg = [
        _saved(rgb, "JPEG", exif=exif),
        _saved(rgb, "JPEG", progressive=True, subsampling=0),
        _saved(rgb, "JPEG", optimize=True, restart_marker_rows=1, icc_profile=bytes(300)),
        _saved(rgb.convert("L"), "JPEG", comment=b"a comment"),
        _saved(rgb.convert("CMYK"), "JPEG", progressive=True),
        _saved(rgb, "MPO", save_all=True, append_images=[rgb]),
    ]
    jpeg.append(jpeg[0].replace(b"\xff\xc0", b"\xff\xc9", 1))
    png = [
        _saved(rgb, "PNG", exif=exif),
        _saved(rgba, "PNG", icc_profile=bytes(300)),
        _saved(rgb.quantize(16), "PNG", transparency=1),
        _saved(rgb.convert("1"), "PNG"),
        _saved(rgb.convert("I;16"), "PNG"),
        _saved(rgb, "PNG", **frames),
    ]
    webp = [
        _saved(rgb, "WEBP", exif=exif),
        _saved(rgba, "WEBP"),
        _saved(rgba, "WEBP", lossless=True, icc_profile=bytes(300)),
        _saved(rgb, "WEBP", **frames),
    ]
    avif = [
        _saved(rgb, "AVIF", exif=exif, speed=10),
        _saved(rgba, "AVIF", quality=90, speed=10),
        _saved(rgb, "AVIF", speed=10, **frames),
    ]
    heic = [
        file.read_bytes() for file in sorted(HEIC.glob("*.heic")) if file.stat().st_size < 5_000
    ]
    return {"JPEG": jpeg, "PNG": png, "WEBP": webp, "AVIF": avif, "HEIC": heic}


def damaged(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """A copy with up to eight faults: bits, bytes, numbers, pieces cut, doubled or foreign."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        # Headers are small and decide the most.
        reach = len(changed) if chance.random() < 0.5 else min(len(changed), 200)
        at = chance.randrange(max(1, reach))
        kind = chance.randrange(7)
        size = chance.choice((1, 2, 4, 8, 40))
        if kind == 0:
            changed[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            width = chance.choice((1, 2, 4))
            number = chance.choice(_NUMBERS) & (256**width - 1)
            changed[at : at + width] = number.to_bytes(width, chance.choice(("big", "little")))
        elif kind == 3:
            del changed[at : at + size]
        elif kind == 4:
            changed[at:at] = changed[at : at + size] * chance.choice((1, 2, 50))
        elif kind == 5:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            changed[at : at + size] = other[start : start + size]
        else:
            del changed[len(changed) - chance.randrange(1, 1 + max(1, len(changed) // 4)) :]
    return bytes(changed)
