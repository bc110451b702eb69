"""What is refused, or decoded elsewhere, before anything is decoded: by bytes, size and work."""

from app.errors import ImageTooLarge
from app.imaging import jpeg
from app.imaging.decoding import damaged
from app.imaging.formats import Header, check_format, read_header, read_header_of
from app.imaging.limits import ImageLimits, check_bytes, check_size

# The ten scans of the usual script walk over 560 million samples in the largest photo of three full
# components. Each takes about half a nanosecond when its scan holds nothing.
MAX_SCANNED_SAMPLES = 1_500_000_000
_USUAL_SCANNED_SAMPLES = 600_000_000
# Bytes of a decoded pixel.
_RESULT = 3
# Their decoders are large, and parsers of boxes within boxes.
ISOLATED_FORMATS = ("HEIC", "AVIF")


def inspect(data: bytes, limits: ImageLimits) -> Header:
    """The header of a photo that may be decoded.

    Raises EmptyImage, UnsupportedImage, ImageTooLarge or UnreadableImage.
    """
    check_bytes(data, limits)
    header = read_header_of(check_format(data), data)
    if header is None:
        raise damaged()
    check_size(header.width, header.height, limits)
    if header.frame:
        _check_scans(data, header.frame)
    return header


def is_suspicious(data: bytes, header: Header) -> bool:
    """Whether decoding could take far longer than the number of pixels says, or harm the process.

    Such photos are decoded in a process of their own.
    """
    frame = header.frame
    if frame is None:
        return header.format in ISOLATED_FORMATS
    enough = _USUAL_SCANNED_SAMPLES
    return frame.arithmetic or jpeg.count_scanned_samples(data, frame, enough) >= enough


def memory_of(header: Header, *, suspicious: bool) -> int:
    """Bytes of memory that decoding takes at its peak, in any process."""
    # Headers of HEIC and AVIF count the copy that comes from the process; here a JPEG's is added.
    return header.memory + (_RESULT * header.pixels if suspicious and header.frame else 0)


def estimate_memory(data: bytes) -> int:
    """Bytes of memory that decoding this photo takes at its peak; 0 for what will be refused
    unread. A caller holds it against `ImageLimits.max_pixels` itself."""
    header = read_header(data)
    return memory_of(header, suspicious=is_suspicious(data, header)) if header else 0


def _check_scans(data: bytes, frame: jpeg.Frame) -> None:
    """Refuses a JPEG whose scans take minutes, and one that is too short for its own size."""
    if len(data) - frame.first_scan < jpeg.least_bytes(frame):
        raise damaged()
    if jpeg.count_scanned_samples(data, frame, MAX_SCANNED_SAMPLES) >= MAX_SCANNED_SAMPLES:
        raise ImageTooLarge(
            "The JPEG has more scans than photos of its size have: together they walk over more "
            f"than {MAX_SCANNED_SAMPLES:,} samples. Save it again, as a usual or a baseline JPEG."
        )
