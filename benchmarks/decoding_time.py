"""How long the worst photo of each kind takes that passes every check: 10 MiB, 40 megapixels.

    python benchmarks/decoding_time.py [NAME ...]

Each is decoded once by the service's decoder (a suspicious one in its process) with the default
limits; beside it an ordinary photo of 12 megapixels, as a measure of the machine.
"""

import io
import struct
import sys
import time
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image as PillowImage

from app.errors import ImageError
from app.imaging import ImageLimits, PhotoDecoder, read_header
from app.imaging.jpeg import count_scanned_samples, read_frame
from app.imaging.limits import MAX_SCANNED_SAMPLES, is_suspicious

LIMITS = ImageLimits()
WIDTH, HEIGHT = 7_300, 5_470


def grain(width: int, height: int, strength: int) -> PillowImage.Image:
    chance = np.random.default_rng(1)
    pixels = chance.integers(128 - strength, 128 + strength, (height, width, 3), np.uint8)
    return PillowImage.fromarray(pixels)


def saved(image: PillowImage.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def ordinary() -> bytes:
    small = grain(252, 189, 60).resize((4_032, 3_024), PillowImage.Resampling.BICUBIC)
    return saved(small, "JPEG", quality=90)


def jpeg_of_grain(**options: object) -> bytes:
    """As much grain as fits 10 MiB."""
    for strength in (24, 16, 10, 6, 4, 3, 2):
        data = saved(grain(WIDTH, HEIGHT, strength), "JPEG", quality=75, subsampling=0, **options)
        if len(data) <= LIMITS.max_bytes:
            return data
    raise AssertionError("no grain is small enough")


def arithmetic() -> bytes:
    """An arithmetic decoder takes any bytes for a picture."""
    return jpeg_of_grain().replace(b"\xff\xc0", b"\xff\xc9", 1)


def empty_scans(width: int, height: int) -> bytes:
    flat = saved(PillowImage.new("RGB", (width, height), (90, 100, 110)), "JPEG", progressive=True)
    blocks = -(-width // 8) * -(-height // 8)
    bits = "".join(
        "0" + format(max(0, min(left, 32_767) - 16_384), "014b")
        for left in range(blocks, 0, -32_767)
    )
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    table = b"\xff\xc4\0\x14\x10\1" + bytes(15) + b"\xe0"
    scan = table + b"\xff\xda\0\x08\1\1\0\1\x3f\x10" + coded
    frame = read_frame(flat)
    assert frame is not None
    left = MAX_SCANNED_SAMPLES - count_scanned_samples(flat, frame, MAX_SCANNED_SAMPLES) - 1
    count = left // (width * height)
    return flat[:-2] + scan * count + flat[-2:]


def png(laced: int, deepest: bool) -> bytes:
    depth, colour, each = (16, 6, 8) if deepest else (8, 2, 3)
    deflate = zlib.compressobj(6)
    line = b"\4" + bytes(WIDTH * each)  # the filter that takes the most time
    lines = b"".join(deflate.compress(line) for _ in range(HEIGHT + 40)) + deflate.flush()
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, laced)
    chunks = (b"IHDR" + header, b"IDAT" + lines, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def webp(**options: object) -> bytes:
    for strength in (20, 8, 4, 2, 1):
        image = grain(WIDTH, HEIGHT, strength)
        image.putalpha(image.getchannel(0))
        data = saved(image, "WEBP", method=0, **options)
        if len(data) <= LIMITS.max_bytes:
            return data
    raise AssertionError("no grain is small enough")


KINDS: dict[str, Callable[[], bytes]] = {
    "ordinary JPEG of 12 MP": ordinary,
    "JPEG, grain": jpeg_of_grain,
    "JPEG, progressive, grain": lambda: jpeg_of_grain(progressive=True),
    "JPEG, arithmetic, grain": arithmetic,
    "JPEG, empty scans, 40 MP": lambda: empty_scans(WIDTH, HEIGHT),
    "JPEG, empty scans, 1 MP": lambda: empty_scans(1_000, 1_000),
    "PNG, 16-bit, transparent, interlaced": lambda: png(1, True),
    "PNG, 16-bit, transparent": lambda: png(0, True),
    "PNG": lambda: png(0, False),
    "WebP, grain, transparent": lambda: webp(quality=30),
    "WebP, lossless, transparent": lambda: webp(lossless=True, quality=0),
    "AVIF, grain": lambda: saved(grain(WIDTH, HEIGHT, 30), "AVIF", speed=10, quality=20),
}


def main() -> None:
    decoder = PhotoDecoder(LIMITS)
    print("| photo | MiB | suspicious | seconds |\n|---|---|---|---|")
    for name, make in KINDS.items():
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        data = make()
        header = read_header(data)
        apart = header is not None and is_suspicious(data, header)
        start = time.perf_counter()
        try:
            decoder.decode(data)
            end = ""
        except ImageError as error:
            end = f" {error.detail}"
        seconds = time.perf_counter() - start
        size = len(data) / 2**20
        print(
            f"| {name} | {size:.1f} | {'yes' if apart else 'no'} | {seconds:.2f}{end} |", flush=True
        )
    decoder.close()


if __name__ == "__main__":
    main()
