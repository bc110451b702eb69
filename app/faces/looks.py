"""Looks of the detector at a photo: in the photo's own pixels, and whether a first one is enough.

A call that needs one face first has the detector look at a small copy of the photo. That takes a
quarter of the time, and the landmarks of large faces are as good there.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from app.errors import FaceError
from app.faces.images import inverse, turned_detections, turned_size
from app.faces.orientation import Look, OrientationLimits
from app.types import DecodedImage, Detections, FloatArray

# Which of the boxes (n, 4), the largest first, is used in a photo of that width and height.
FaceSelector: TypeAlias = Callable[[FloatArray, int, int], int]
# Shorter side in the small copy, pixels, from which a face is aligned by that copy's landmarks. A
# face half as large, for which a photo may be refused, is usually found there, too.
LARGE_ENOUGH = 48.0


def takes_the_largest(selector: FaceSelector, width: int, height: int) -> bool:
    """Whether faces that a small copy does not show cannot be chosen: the selector takes a large
    face at the edge of a photo of that size before a tiny one in its middle."""
    middle_x, middle_y = width / 2, height / 2
    tiny = [middle_x - 1, middle_y - 1, middle_x + 1, middle_y + 1]
    return selector(np.array([[0, 0, middle_x, middle_y], tiny], np.float32), width, height) == 0


def shows_enough(
    look: Look,
    decoded: DecodedImage,
    selector: FaceSelector,
    limits: OrientationLimits | None,
    side: int,
) -> bool:
    """Whether a look at a copy with `side` pixels on its longer side decides which face counts: it
    is upright beyond doubt, the selector, which `takes_the_largest`, chooses a face without
    refusing the photo, and that face is LARGE_ENOUGH."""
    if not len(look.found) or (limits is not None and limits.doubt(look.found)):
        return False
    found = largest_first(in_the_photo(look, decoded), len(look.found))
    try:
        left, top, right, bottom = found.boxes[selector(found.boxes, decoded.width, decoded.height)]
    except FaceError:  # decided by the full look
        return False
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
    areas = np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1)
    return found.take(np.argsort(-areas, kind="stable")[:limit])
