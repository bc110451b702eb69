"""Which format a photo has, by its first bytes, and what its header says of its size."""

from dataclasses import dataclass

from app.errors import UnreadableImage, UnsupportedImage
from app.imaging.jpeg import (
    MAX_FILL,
    MAX_SEGMENTS,
    Frame,
    TooManySegments,
    has_several_scans,
    read_frame,
)

FORMATS = ("JPEG", "PNG", "WEBP", "HEIC", "AVIF")
ADVICE = "send JPEG, PNG, WebP, HEIC or AVIF"

_AVIF = {b"avif", b"avis"}
# Still images and sequences in HEVC (ISO/IEC 23008-12, annex B).
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
# Other formats whose files are made of boxes, by their major brand.
_BOXED = {b"jp2 ": "JPEG 2000", b"jpx ": "JPEG 2000", b"jxl ": "JPEG XL", b"crx ": "Canon raw"}
_HEIF = {b"mif1", b"msf1", b"mif2", b"miaf"}
_FIRST_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_MAX_BRANDS = 64


def sniff_format(data: bytes) -> str | None:
    """The format that the leading bytes announce, whatever the file is called; None if unknown."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _boxed_format(data)
    if data[4:8] in _FIRST_BOXES:
        return "QuickTime video"
    if data[4:12] in (b"jP  \r\n\x87\n", b"JXL \r\n\x87\n"):
        return "JPEG 2000" if data[4:5] == b"j" else "JPEG XL"
    for magic, name in _OTHERS:
        if data.startswith(magic):
            return name
    return None


_OTHERS = (
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"BM", "BMP"),
    (b"%PDF-", "PDF"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)


def _boxed_format(data: bytes) -> str:
    """By the brands of the file type box (ISO/IEC 14496-12, 4.3): HEIC, AVIF and films share it."""
    length = min(int.from_bytes(data[:4], "big"), 16 + 4 * _MAX_BRANDS, len(data))
    major = data[8:12]
    brands = {major, *(data[at : at + 4] for at in range(16, length - 3, 4))}
    if major in _HEIC or (major not in _AVIF and brands & _HEIC and not brands & _AVIF):
        return "HEIC"
    if brands & _AVIF:
        return "AVIF"
    if brands & _HEIF:
        return "HEIF"
    if major in _BOXED:
        return _BOXED[major]
    return "QuickTime video" if major == b"qt  " else "MP4 video"


def check_format(data: bytes) -> str:
    """The format of a photo that can be decoded. Raises UnsupportedImage for any other."""
    found = sniff_format(data)
    if found in FORMATS:
        return found
    if found is None:
        raise UnsupportedImage(f"The bytes are not an image of a known format; {ADVICE}.")
    what = f"{found}s" if found.endswith("video") else f"{found} images"
    raise UnsupportedImage(f"{what} are not supported; {ADVICE}.")


# Of a decoder's tables, its line buffers and the strips that are converted one by one.
_FIXED = 8 * 1024 * 1024
# The decoded copy as this project uses it: 8-bit BGR.
_BGR = 3
# A HEIC describes its tiles and thumbnails too, most often all tiles at once.
_MAX_PICTURES = 1_023
# Some twenty boxes are usual, beside those of the pictures.
_MAX_BOXES = 4_096
# Boxes whose content is boxes, and the bytes before the first of them.
_ENTERED = {b"meta": 4, b"iprp": 0, b"ipco": 0}


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
    try:
        return read_header_of(sniff_format(data), data)
    except UnreadableImage:
        return None


def read_header_of(format_name: str | None, data: bytes) -> Header | None:
    """The same where the format is known. Raises UnreadableImage for one with far too many parts
    to be read in a short time."""
    reader = _READERS.get(format_name or "")
    return reader(data) if reader else None


def _read_jpeg(data: bytes) -> Header | None:
    try:
        frame = read_frame(data)
    except TooManySegments as error:
        raise too_many_parts(
            f"The JPEG has more than {MAX_SEGMENTS:,} marker segments, or {MAX_FILL:,} bytes "
            "between them"
        ) from error
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
    """The largest picture that the file describes (ISO/IEC 23008-12, 6.5.3: `ispe`)."""
    pictures = _pictures(data)
    if not pictures:
        return None
    width, height = max(pictures, key=lambda size: size[0] * size[1])
    return (
        Header(sniff_format(data) or "", width, height, 20, len(data)) if width * height else None
    )


def _pictures(data: bytes) -> list[tuple[int, int]]:
    """The width and height of each `ispe` within `meta`. Other boxes are passed over by their
    length: a search would go through all coded data and color profiles, and no other thread could
    run meanwhile. Raises UnreadableImage."""
    pictures: list[tuple[int, int]] = []
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > len(data):
            return pictures
        length, begin = int.from_bytes(data[at : at + 4], "big"), at + 8
        if length == 1:  # the length follows in 64 bits (ISO/IEC 14496-12, 4.2)
            length, begin = int.from_bytes(data[begin : begin + 8], "big"), at + 16
        end = at + length if length else len(data)
        if end < begin:
            return pictures
        name = data[at + 4 : at + 8]
        if name == b"ispe":
            width, height = data[begin + 4 : begin + 8], data[begin + 8 : begin + 12]
            pictures.append((int.from_bytes(width, "big"), int.from_bytes(height, "big")))
            if len(pictures) > _MAX_PICTURES:
                raise too_many_parts(f"The photo describes more than {_MAX_PICTURES:,} pictures")
        at = begin + _ENTERED[name] if name in _ENTERED else end
    raise too_many_parts(f"The photo has more than {_MAX_BOXES:,} boxes")


def too_many_parts(what: str) -> UnreadableImage:
    """The refusal of a photo with so many parts, as `what` says, that reading them takes long."""
    return UnreadableImage(
        f"{what}, which cameras and programs do not write; save it again, as a JPEG."
    )


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
