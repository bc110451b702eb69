"""What the header of a photo claims, read without decoding: its size and the memory it will take.

Everything here is cheap (microseconds) and runs on hostile bytes. `benchmarks/decoding_memory.py`
measures what the estimates promise.
"""

from dataclasses import dataclass

from app.imaging.formats import sniff_format
from app.imaging.jpeg import Frame, TooManySegments, has_several_scans, read_frame

# Of a decoder's tables, its line buffers and the strips that are converted one by one.
_FIXED = 8 * 1024 * 1024
# The decoded copy as this project uses it: 8-bit BGR.
_BGR = 3
# A HEIC describes its tiles and thumbnails too, most often all tiles at once.
_MAX_PICTURES = 4_096


@dataclass(frozen=True, slots=True)
class Header:
    """The claims of a photo's header.

    `width` and `height` are pixels as stored, before any turn; `bytes_per_pixel` is the memory that
    each takes while the photo is decoded, the result (3 bytes) included; `copied` are bytes of the
    file that are held once more; `frame` is what else a JPEG
    says of itself.
    """

    format: str
    width: int
    height: int
    bytes_per_pixel: float
    copied: int = 0
    frame: Frame | None = None

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def memory(self) -> int:
        """Bytes that decoding takes at its peak, the file as it was sent aside."""
        return _FIXED + self.copied + int(self.pixels * self.bytes_per_pixel)


def read_header(data: bytes) -> Header | None:
    """The claims of a photo's header; None where they cannot be read, as of a damaged file."""
    return read_header_of(sniff_format(data), data)


def read_header_of(format_name: str | None, data: bytes) -> Header | None:
    """The same where the format is known."""
    reader = _READERS.get(format_name or "")
    return reader(data) if reader else None


def _read_jpeg(data: bytes) -> Header | None:
    try:
        frame = read_frame(data)
    except TooManySegments:
        return None
    if frame is None:
        return None
    # Pillow has four bytes for a pixel of colour; of several scans all coefficients are kept.
    each = _BGR + (1.0 if frame.components == 1 else 4.0)
    if frame.width and frame.height and has_several_scans(data, frame):
        each += 2 * frame.samples / (frame.width * frame.height)
    return Header("JPEG", frame.width, frame.height, each, frame=frame)


def _read_png(data: bytes) -> Header | None:
    if data[12:16] != b"IHDR" or len(data) < 29:
        return None
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    depth, colour = data[24], data[25]
    if colour in (0, 3):
        return Header("PNG", width, height, _BGR + (2 if depth == 16 else 1), len(data))
    return Header("PNG", width, height, _BGR + 4, len(data))


def _read_webp(data: bytes) -> Header | None:
    size = _webp_size(data)
    if size is None:
        return None
    lossless, animated = data[12:16] != b"VP8 ", _is_animated_webp(data)
    # The decoder's picture, for lossless files its own copy of it, and for animations two canvases.
    each = _BGR + 4 + (4 if lossless else 0) + (8 if animated else 0)
    return Header("WEBP", *size, each, len(data))


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Of RIFF's first chunk (RFC 9649)."""
    chunk = data[12:16]
    if chunk == b"VP8 " and len(data) >= 30:
        return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
    if chunk == b"VP8X" and len(data) >= 30:
        return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if chunk == b"VP8L" and len(data) >= 25:
        bits = _little(data[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _read_boxed(data: bytes) -> Header | None:
    """The largest picture that the file describes (ISO/IEC 23008-12, 6.5.3: `ispe`).

    A box may stand anywhere in `meta`, so the name is searched for: nothing a decoder reads is
    missed.
    """
    start = data.find(b"meta")
    end = min(len(data), start - 4 + int.from_bytes(data[start - 4 : start], "big"))
    width = height = 0
    at = data.find(b"ispe", start, end) if start >= 4 else -1
    for _ in range(_MAX_PICTURES):
        if at < 0:
            break
        size = (
            int.from_bytes(data[at + 8 : at + 12], "big"),
            int.from_bytes(data[at + 12 : at + 16], "big"),
        )
        if size[0] * size[1] > width * height:
            width, height = size
        at = data.find(b"ispe", at + 4, end)
    else:
        return None
    return Header(sniff_format(data) or "", width, height, 20, len(data)) if width else None


def _is_animated_webp(data: bytes) -> bool:
    return data[12:16] == b"VP8X" and bool(data[20] & 0x02)


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


_READERS = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WEBP": _read_webp,
    "HEIC": _read_boxed,
    "AVIF": _read_boxed,
}
