"""Which format a file has, by its first bytes."""

from app.errors import UnsupportedImage

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
