"""What one photo may measure, checked on its bytes and its header."""

from dataclasses import dataclass

from app.errors import EmptyImage, ImageTooLarge

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


def too_many_pixels(what: str, limits: ImageLimits) -> ImageTooLarge:
    """The refusal of a photo of which `what` says how large it is."""
    return ImageTooLarge(
        f"{what}; at most {limits.max_pixels:,} pixels in all and {limits.max_side:,} on a side "
        "are accepted. Send a smaller copy."
    )
