"""The limits of one photo in bytes, size and work: which photos are refused before they are
decoded, and which are decoded in another process."""

from dataclasses import dataclass

from app.errors import EmptyImage, ImageTooLarge, UnreadableImage
from app.imaging import jpeg
from app.imaging.formats import Header, check_format, read_header, read_header_of

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one image may measure: bytes as sent, pixels in all, pixels of its longer side.

    `decode_bytes` is the memory that all photos at work may take together while they are decoded,
    by their headers; `decode_seconds` how long one may take that is decoded in another process.
    """

    max_bytes: int = 10 * _MIB
    max_pixels: int = 40_000_000
    max_side: int = 16_384
    decode_bytes: int = 2048 * _MIB
    decode_seconds: float = 20.0


def check_bytes(data: bytes, limits: ImageLimits) -> None:
    """Raises EmptyImage or ImageTooLarge."""
    if not data:
        raise EmptyImage("The image has zero bytes; check that the file was read before sending.")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"The image has more than the {limits.max_bytes:,} bytes that are accepted. "
            "Send a smaller copy: faces need no more than about 200 pixels each."
        )


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raises ImageTooLarge."""
    if max(width, height) > limits.max_side or width * height > limits.max_pixels:
        raise too_many_pixels(f"The image measures {width} × {height} pixels", limits)


def check_opened(size: tuple[int, int], header: Header, limits: ImageLimits) -> None:
    """Check the size that a decoder is about to decode: a file may state several, and the memory
    that was counted is that of its header. Raises ImageTooLarge or UnreadableImage."""
    width, height = size
    check_size(width, height, limits)
    if width * height > header.pixels:
        raise UnreadableImage(
            f"The image is damaged: its header states {header.width} × {header.height} pixels, and "
            f"the picture in it {width} × {height}. Save it again, as a JPEG."
        )


def too_many_pixels(what: str, limits: ImageLimits) -> ImageTooLarge:
    """The refusal of a photo of which `what` says how large it is."""
    return ImageTooLarge(
        f"{what}; at most {limits.max_pixels:,} pixels in all and {limits.max_side:,} on a side "
        "are accepted. Send a smaller copy."
    )


def damaged() -> UnreadableImage:
    """The refusal of a photo whose pixel data is incomplete."""
    return UnreadableImage(
        "The image is damaged or incomplete and could not be decoded; send the whole file."
    )


# The ten scans of the usual script walk over 560 million samples in the largest photo of three full
# components. Each takes about half a nanosecond when its scan holds nothing.
MAX_SCANNED_SAMPLES = 1_500_000_000
_USUAL_SCANNED_SAMPLES = 600_000_000
# Bytes of a decoded pixel.
_RESULT = 3
# Bytes that a pixel may take in a decoder process: planes of 16 bits, a copy, and the result.
BYTES_PER_PIXEL = 24
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
            "The JPEG has more scans than photos of its size have: more than "
            f"{jpeg.MAX_SCANS:,}, or together they walk over more than {MAX_SCANNED_SAMPLES:,} "
            "samples. Save it again, as a usual or a baseline JPEG."
        )
