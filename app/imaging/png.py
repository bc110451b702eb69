"""PNG files as they are in memory: only what the pixels and their orientation need is passed on.

Pillow reads every chunk, refuses the file for one damaged or large comment, and takes each piece of
the pixels in Python. So it is given a file without comments, and with the pixels in one piece.
(ISO/IEC 15948; "ancillary" is a chunk that a decoder may leave out.)

Aligned faces are kept as PNG files too: every pixel as the recogniser saw it.
"""

import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np

from app.errors import UnreadableImage
from app.imaging.formats import too_many_parts
from app.types import Image

_Bytes = bytes | memoryview

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The beginning of a file: the length and kind of its first chunk, then the sides in pixels.
_SIZE = struct.Struct(">8sI4sII")
# Of an aligned face: recognisers take 112 pixels, few take more.
MAX_CROP_SIDE, MAX_CROP_BYTES = 512, 1 << 20
# Usual encoders write pieces of at least 8 KiB; the limit allows 10 MiB in pieces of 160 bytes.
MAX_CHUNKS = 65_536
# Of a text as much is read as this; its orientation is at the beginning.
_MAX_TEXT = 1024 * 1024
_ANCILLARY = 0x20
_NEEDED = (b"tRNS", b"eXIf")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Texts in which an orientation may lie.
_KEYWORDS = (b"XML:com.adobe.xmp", b"Raw profile type exif")


def without_comments(data: bytes) -> bytes:
    """The same picture without the ancillary chunks that no pixel needs, or that are damaged.

    A file that ends within its pixels still does. Raises UnreadableImage where there are
    more chunks than any encoder writes.
    """
    head: list[_Bytes] = [SIGNATURE]
    tail: list[_Bytes] = []
    pixels: list[_Bytes] = []
    texts: dict[bytes, tuple[bytes, _Bytes]] = {}
    for kind, body, checksum in _chunks(memoryview(data)):
        if kind == b"IDAT":
            # The standard wants them in a row; one that comes later is no part of the picture.
            if not tail:
                pixels.append(body)
            continue
        part = tail if pixels else head
        if kind == b"IEND":
            break
        if not kind[0] & _ANCILLARY:
            part += (struct.pack(">I", len(body)), kind, body, checksum)
        elif checksum == _checksum(kind, body):
            if kind in _NEEDED:
                part += _chunk(kind, body)
            elif kind in _TEXTS and (keyword := bytes(body[:80]).partition(b"\0")[0]) in _KEYWORDS:
                texts[keyword] = kind, body[len(keyword) + 1 :]
    for keyword, (kind, content) in texts.items():
        if text := _read_text(kind, content):
            head += _chunk(b"tEXt", b"%b\0%b" % (keyword, text))
    if pixels:
        head += _chunk(b"IDAT", b"".join(pixels))
    return b"".join((*head, *tail, *_chunk(b"IEND", b"")))


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview, bytes]]:
    """Kind, content and checksum of each chunk; of the last what the end of the file leaves."""
    at = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        yield bytes(data[at + 4 : at + 8]), data[at + 8 : end], bytes(data[end : end + 4])
        at = end + 4
    raise too_many_parts(f"The PNG has more than {MAX_CHUNKS:,} chunks")


def _read_text(kind: bytes, content: _Bytes) -> bytes:
    """The beginning of a text, whose chunk has `content` after the keyword; empty where
    it is damaged."""
    text, packed = bytes(content), kind == b"zTXt"
    if kind == b"iTXt":
        packed = text[:1] != b"\0"
        text = text[1:2] + text[2:].split(b"\0", 2)[-1]
    if not packed:
        return text[kind == b"iTXt" :][:_MAX_TEXT]
    try:
        return zlib.decompressobj().decompress(text[1:], _MAX_TEXT) if text[:1] == b"\0" else b""
    except zlib.error:
        return b""


def _chunk(kind: bytes, body: _Bytes) -> tuple[_Bytes, ...]:
    return struct.pack(">I", len(body)), kind, body, _checksum(kind, body)


def _checksum(kind: bytes, body: _Bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def encode_crop(crop: Image) -> bytes:
    """The PNG file of an aligned face, BGR."""
    _, encoded = cv2.imencode(".png", crop)
    return encoded.tobytes()


def decode_crop(data: bytes) -> Image | None:
    """The aligned face of such a file, BGR; None if the file is damaged or is another one."""
    head = data[: _SIZE.size]
    if len(data) > MAX_CROP_BYTES or len(head) < _SIZE.size:
        return None
    signature, _, kind, width, height = _SIZE.unpack(head)
    if (signature, kind) != (SIGNATURE, b"IHDR") or width != height or width > MAX_CROP_SIDE:
        return None
    crop = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if crop is None else np.asarray(crop, np.uint8)


def check_crop(data: bytes, side: int) -> None:
    """Raise UnreadableImage unless this is the file of an aligned face; `side`: in pixels."""
    crop = decode_crop(data)
    if crop is None or crop.shape != (side, side, 3):
        raise UnreadableImage(
            f"The crop is not the PNG file of an aligned face: a square of {side} pixels. Leave it "
            "out, or give the one that was exported."
        )
