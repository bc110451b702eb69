"""Photos that take more time or memory to decode than their bytes say."""

import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from tests.hostile.scenario import attack
from tests.hostile.target import Target

DETECT = "/v1/detect"
HEIC = Path(__file__).resolve().parents[2] / "data" / "heic"
REFUSED = (413, 422, 503)


def at_once(target: Target, photos: list[bytes], *allowed: int) -> int:
    """Send all of them at the same time and wait for all answers."""
    found: list[int] = []
    headers = {"content-type": "application/octet-stream"}

    def send(photo: bytes) -> None:
        # Longer than the service's own time limit, whose answer is wanted.
        with target.client(timeout=90) as client:
            found.append(client.post(DETECT, content=photo, headers=headers).status_code)

    threads = [threading.Thread(target=send, args=[photo]) for photo in photos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    target.expect(len(found), len(photos))
    for status in found:
        target.expect(status, *allowed)
    return len(photos)


def flat_jpeg(side: int) -> bytes:
    buffer = io.BytesIO()
    flat = PillowImage.new("RGB", (side, side), (90, 100, 110))
    flat.save(buffer, "JPEG", progressive=True)
    return buffer.getvalue()


def scan_of_nothing(blocks: int) -> bytes:
    """A refinement scan of the first component that says "no more" for all of its blocks."""
    table = b"\xff\xc4\0\x14\x10\1" + bytes(15) + b"\xe0"
    bits = "".join(
        "0" + format(max(0, min(left, 32_767) - 16_384), "014b")
        for left in range(blocks, 0, -32_767)
    )
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return table + b"\xff\xda\0\x08\1\1\0\1\x3f\x10" + coded


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes, laced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, laced)
    pieces = (b"IHDR" + header, *chunks, b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in pieces
    )


def webp_of_a_few_bytes() -> bytes:
    """46 bytes that are 40 megapixels with transparency."""
    bits = (8_000 - 1) | (5_000 - 1) << 14 | 1 << 28
    chunk = b"\x2f" + bits.to_bytes(4, "little") + b"\x88\x88\x08" + bytes(18)
    body = b"WEBPVP8L" + len(chunk).to_bytes(4, "little") + chunk
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@attack("JPEG of 19,396 progressive scans, four at once")
def thousands_of_scans(target: Target) -> int:
    jpeg = flat_jpeg(1_600)
    photo = jpeg[:-2] + scan_of_nothing(200 * 200) * 19_396 + jpeg[-2:]
    return at_once(target, [photo] * 4, 413)


@attack("JPEG with as many scans as are accepted, twice four at once")
def many_scans(target: Target) -> int:
    jpeg = flat_jpeg(1_600)
    photo = jpeg[:-2] + scan_of_nothing(200 * 200) * 570 + jpeg[-2:]
    return at_once(target, [photo] * 4, 200, 503) + at_once(target, [photo] * 4, 200, 503)


@attack("46 bytes of WebP that are 40 megapixels, eight at once")
def tiny_webp(target: Target) -> int:
    return at_once(target, [webp_of_a_few_bytes()] * 8, 200, *REFUSED)


@attack("PNG of 40 megapixels of 16 bits, interlaced, in 320 kB, four at once")
def deflated_png(target: Target) -> int:
    deflate = zlib.compressobj(9)
    line = bytes(1 + 5_000 * 8)
    lines = b"".join(deflate.compress(line) for _ in range(8_200)) + deflate.flush()
    photo = png(5_000, 8_000, 16, 6, b"IDAT" + lines, laced=1)
    return at_once(target, [photo] * 4, 200, *REFUSED)


@attack("PNG in 800,000 empty pieces, JPEG of 2,600,000 empty segments or 10 MB of fill bytes")
def many_pieces(target: Target) -> int:
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    whole = png(8, 8, 8, 0, b"IDAT" + zlib.compress(bytes(72)))
    jpeg = flat_jpeg(16)
    photos = [
        whole[:33] + empty * 800_000 + whole[33:],
        jpeg[:2] + b"\xff\xfe\0\2" * 2_600_000 + jpeg[2:],
        jpeg[:2] + b"\xff" * 10_000_000 + jpeg[2:],
    ]
    return at_once(target, photos, 422)


@attack("PNG with 60 texts that expand to 1 GB each")
def expanding_texts(target: Target) -> int:
    bomb = zlib.compress(bytes(100_000_000), 9)
    text = b"zTXtXML:com.adobe.xmp\0\0" + bomb
    photo = png(8, 8, 8, 0, *[text] * 60, b"IDAT" + zlib.compress(bytes(72)))
    return at_once(target, [photo] * 4, 200)


@attack("animated WebP of 60,000 frames, APNG of 60,000 announced")
def many_frames(target: Target) -> int:
    buffer = io.BytesIO()
    frames = [PillowImage.new("RGB", (16, 16), (i, 0, 0)) for i in (0, 99)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    webp = buffer.getvalue()
    at = webp.index(b"ANMF")
    size = 8 + int.from_bytes(webp[at + 4 : at + 8], "little")
    many = webp[:at] + webp[at : at + size + size % 2] * 60_000
    many = many[:4] + (len(many) - 8).to_bytes(4, "little") + many[8:]
    apng = png(
        8, 8, 8, 0, b"acTL" + struct.pack(">II", 60_000, 0), b"IDAT" + zlib.compress(bytes(72))
    )
    return at_once(target, [many, apng] * 2, 200, 422)


@attack("HEIC of 10 kB that is 40 megapixels, four at once")
def tiny_heic(target: Target) -> int:
    photo = (HEIC / "forty_megapixels.heic").read_bytes()
    return at_once(target, [photo] * 4, 200, *REFUSED)


@attack("HEIC and AVIF with damage, 400 one after the other")
def damaged_boxes(target: Target) -> int:
    buffer, chance = io.BytesIO(), np.random.default_rng(4)
    PillowImage.effect_noise((64, 48), 40).convert("RGB").save(buffer, "AVIF", speed=10)
    whole = [buffer.getvalue(), (HEIC / "plain.heic").read_bytes()]
    with target.client() as client:
        for number in range(400):
            photo = bytearray(whole[number % 2])
            for at in chance.integers(12, len(photo), 4):
                photo[at] = chance.integers(256)
            answer = client.post(
                DETECT, content=bytes(photo), headers={"content-type": "image/heic"}
            )
            target.expect(answer.status_code, 200, 413, 415, 422)
    return 400
