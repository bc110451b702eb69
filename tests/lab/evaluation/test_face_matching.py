"""Detections against labelled boxes."""

import math

import numpy as np
import pytest

from app.lab.evaluation.metrics import (
    FaceMatches,
    SizeRecall,
    intersection_over_union,
    match_faces,
    recall_by_size,
)
from app.types import FloatArray

FACE = [10.0, 10.0, 30.0, 40.0]  # 20 x 30 pixels
OTHER = [100.0, 100.0, 150.0, 140.0]  # 50 x 40 pixels


def boxes(*rows: list[float]) -> FloatArray:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def match(found: FloatArray, labelled: FloatArray, *scores: float) -> FaceMatches:
    return match_faces(found, np.array(scores or [0.9] * len(found), np.float32), labelled)


def test_iou_of_known_boxes() -> None:
    half = [10.0, 10.0, 20.0, 40.0]
    overlap = intersection_over_union(boxes(FACE, half, OTHER), boxes(FACE))
    assert overlap[:, 0] == pytest.approx([1.0, 0.5, 0.0])


def test_iou_of_empty_boxes_is_zero() -> None:
    point = [5.0, 5.0, 5.0, 5.0]
    assert intersection_over_union(boxes(point), boxes(point))[0, 0] == 0.0


def test_a_face_is_found_at_an_iou_of_exactly_one_half() -> None:
    matches = match(boxes([10.0, 10.0, 20.0, 40.0]), boxes(FACE, OTHER))
    assert matches.face_found.tolist() == [True, False]
    assert matches.face_sides.tolist() == [20.0, 40.0]
    assert (matches.detections, matches.unmatched) == (1, 0)


def test_less_overlap_is_no_match() -> None:
    matches = match(boxes([10.0, 10.0, 19.0, 40.0]), boxes(FACE))
    assert (matches.face_found.tolist(), matches.unmatched) == ([False], 1)


def test_a_second_detection_of_a_face_is_unmatched() -> None:
    matches = match(boxes(FACE, FACE), boxes(FACE))
    assert (matches.face_found.tolist(), matches.unmatched) == ([True], 1)


def test_the_better_score_chooses_first() -> None:
    left, right = [0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 13.0, 10.0]
    between = [1.0, 0.0, 11.0, 10.0]  # overlaps both; nearer to the left one
    both = boxes(left, right)
    assert match(boxes(left, between), both, 0.9, 0.8).unmatched == 0
    # First in line, `between` takes the left face; `left` still overlaps the right one by 0.54.
    assert match(boxes(left, between), both, 0.8, 0.9).unmatched == 0
    narrow = boxes(left, [6.0, 0.0, 16.0, 10.0])
    assert match(boxes(left, between), narrow, 0.8, 0.9).unmatched == 1


def test_nothing_found_and_nothing_labelled() -> None:
    assert match(boxes(), boxes(FACE)).face_found.tolist() == [False]
    assert match(boxes(FACE), boxes()).unmatched == 1
    assert match(boxes(), boxes()).detections == 0


def test_recall_counts_faces_of_at_least_a_size() -> None:
    photos = [match(boxes(FACE), boxes(FACE, OTHER)), match(boxes(), boxes(FACE))]
    small, exact, large, none = recall_by_size(photos, [0.0, 20.0, 30.0, 100.0])
    assert small == SizeRecall(0.0, faces=3, found=1)
    assert exact == SizeRecall(20.0, faces=3, found=1)
    assert (large.recall, large.faces) == (0.0, 1)
    assert math.isnan(none.recall)


def test_recall_of_no_photos() -> None:
    assert recall_by_size([], [16.0]) == (SizeRecall(16.0, 0, 0),)
