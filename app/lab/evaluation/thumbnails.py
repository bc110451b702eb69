"""Photos small enough to stand in a report, as `data:` URIs."""

import base64
import io

import numpy as np
from PIL import Image as PillowImage

from app.errors import ImageError
from app.imaging import ImageLimits, decode_image

MAX_SIDE_PX = 112
_JPEG_QUALITY = 80

# Photos of an evaluation lie on the operator's own disk and may be larger than a client may send.
_LIMITS = ImageLimits(max_bytes=64 * 1024 * 1024, max_pixels=100_000_000)


def thumbnail_uri(photo: bytes) -> str | None:
    """A photo as a JPEG of at most 112 pixels a side, in a `data:` URI.

    None where the bytes cannot be decoded. The thumbnail is upright, never larger than the photo,
    and encoded again: no place, time or other metadata of the photo gets into the report.
    """
    try:
        image = decode_image(photo, _LIMITS)
    except ImageError:
        return None
    picture = PillowImage.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    written = io.BytesIO()
    picture.save(written, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode("ascii")
