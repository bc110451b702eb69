"""Looks of the detector at a photo: in the photo's own pixels, and whether a first one is enough.

A call that needs one face first has the detector look at a small copy of the photo. That takes a
quarter of the time, and the landmarks of large faces are as good there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.errors import FaceError
from app.faces.images import inverse, turned_detections, turned_size
from app.faces.orientation import Look, OrientationLimits
from app.types import DecodedImage, Detections, FloatArray

# Shorter side in the small copy, pixels, from which a face is aligned by that copy's landmarks. A
# face half as large, for which a photo may be refused, is usually found there, too.
LARGE_ENOUGH = 48.0


@dataclass(frozen=True, slots=True)
class FaceSelector:
    """Which face of a photo is used. `choose` returns the number of one of the boxes (n, 4), the
    largest first, of a photo of that width and height, or raises the FaceError family.

    `by_size`: it never chooses a face before a larger one, so none that a small copy of the photo
    does not show.
    """

    choose: Callable[[FloatArray, int, int], int]
    by_size: bool


def shows_enough(
    look: Look,
    decoded: DecodedImage,
    selector: FaceSelector,
    limits: OrientationLimits | None,
    side: int,
) -> bool:
    """Whether a look at a copy with `side` pixels on its longer side decides which face is used:
    the photo is upright beyond doubt, the selector chooses `by_size` and does not refuse the photo,
    and the face is LARGE_ENOUGH."""
    if not len(look.found) or (limits is not None and limits.doubt(look.found)):
        return False
    found = largest_first(in_the_photo(look, decoded), len(look.found))
    try:
        chosen = selector.choose(found.boxes, decoded.width, decoded.height)
    except FaceError:  # decided by the full look
        return False
    left, top, right, bottom = found.boxes[chosen]
    scale = side / max(decoded.width, decoded.height)
    return bool(min(right - left, bottom - top) * scale >= LARGE_ENOUGH)


def in_the_photo(look: Look, decoded: DecodedImage) -> Detections:
    """Detections of a turned and reduced copy in the photo's own pixels."""
    ratio, found = np.float32(decoded.reduction), look.found
    landmarks = None if found.landmarks is None else found.landmarks * ratio
    enlarged = Detections(found.boxes * ratio, found.scores, landmarks)
    # The copy's last row and column may reach beyond the photo.
    height, width = (side * decoded.reduction for side in decoded.pixels.shape[:2])
    turned = turned_size((height, width), look.rotation)
    sent = turned_detections(enlarged, inverse(look.rotation), *turned)
    edges = np.array([decoded.width, decoded.height] * 2, np.float32)
    return Detections(np.minimum(sent.boxes, edges), sent.scores, sent.landmarks)


def largest_first(found: Detections, limit: int) -> Detections:
    """At most `limit` of the detections, the largest box first."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    areas = sides[:, 0] * sides[:, 1]
    return found.take(np.argsort(-areas, kind="stable")[:limit])
