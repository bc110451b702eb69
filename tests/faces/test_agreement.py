"""The faces that two detectors both find."""

import numpy as np
import pytest

from app.faces.agreement import SAME_FACE_IOU, iou, same_faces
from app.types import Detections, FloatArray


def detections(*corners: tuple[int, int], side: int = 100, moved: float = 0) -> Detections:
    """Square faces, with landmarks in their middle that are `moved` to the right."""
    starts = np.array(corners, np.float32).reshape(-1, 2)
    middle = np.repeat(starts[:, np.newaxis] + side / 2, 5, axis=1)
    middle[..., 0] += moved
    scores = np.ones(len(starts), np.float32)
    return Detections(np.hstack([starts, starts + side]), scores, middle)


def box(*edges: float) -> FloatArray:
    return np.array(edges, np.float32)


def test_overlap_of_two_boxes() -> None:
    assert iou(box(0, 0, 10, 10), box(0, 0, 10, 10)) == 1
    assert iou(box(0, 0, 10, 10), box(5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou(box(0, 0, 10, 10), box(20, 20, 30, 30)) == 0
    assert iou(box(5, 5, 5, 5), box(5, 5, 5, 5)) == 0  # without an area


def test_each_face_is_found_once_and_by_its_nearest() -> None:
    first = detections((0, 0), (300, 0))
    second = detections((310, 0), (10, 0), (0, 2), moved=5)
    found = same_faces(first, second)
    assert [(pair.first, pair.second) for pair in found] == [(0, 2), (1, 0)]
    assert found[0].iou == pytest.approx(98 / 102)
    assert found[0].distance == pytest.approx(np.hypot(5, 2) / 100)


def test_other_places_are_other_faces() -> None:
    far = same_faces(detections((0, 0)), detections((40, 0)))
    assert iou(box(0, 0, 100, 100), box(40, 0, 140, 100)) < SAME_FACE_IOU
    assert far == []
    assert same_faces(detections(), detections((0, 0))) == []
    assert same_faces(detections((0, 0)), detections()) == []


def test_without_landmarks_there_is_no_distance() -> None:
    boxes = detections((0, 0))
    (pair,) = same_faces(Detections(boxes.boxes, boxes.scores, None), boxes)
    assert pair.distance == 0
