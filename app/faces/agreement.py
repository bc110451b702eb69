"""Two forms of a detector on one image: the faces that both find, and how far these are apart."""

from dataclasses import dataclass

import numpy as np

from app.types import Detections, FloatArray

SAME_FACE_IOU = 0.5


@dataclass(frozen=True, slots=True)
class SameFace:
    """A face that two detectors find: its places in their answers, the overlap of the boxes
    (intersection over union), and the mean distance of the landmarks as a share of the shorter
    side of the first box (0 without landmarks)."""

    first: int
    second: int
    iou: float
    distance: float


def same_faces(first: Detections, second: Detections) -> list[SameFace]:
    """The faces that both answers have, each once: boxes that overlap by SAME_FACE_IOU or more,
    each face of `first` in turn with the one of `second` that overlaps it most."""
    found, free = list[SameFace](), set(range(len(second)))
    for i, box in enumerate(first.boxes):
        overlaps = {j: iou(box, second.boxes[j]) for j in sorted(free)}
        j = max(overlaps, key=lambda place: overlaps[place], default=-1)
        if j >= 0 and overlaps[j] >= SAME_FACE_IOU:
            free.remove(j)
            found.append(SameFace(i, j, overlaps[j], _distance(first, i, second, j)))
    return found


def iou(one: FloatArray, other: FloatArray) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    inner = np.maximum(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0)
    shared = float(np.prod(inner))
    whole = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - shared
    return shared / whole if whole > 0 else 0.0


def _distance(first: Detections, i: int, second: Detections, j: int) -> float:
    if first.landmarks is None or second.landmarks is None:
        return 0.0
    apart = np.linalg.norm(first.landmarks[i] - second.landmarks[j], axis=1).mean()
    sides = first.boxes[i][2:] - first.boxes[i][:2]
    return float(apart / max(float(sides.min()), 1.0))
