"""Alignment against its definition, and against scikit-image's estimate of the same transform."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.faces.images import ARCFACE_TEMPLATE, align_faces, similarity_transforms
from app.types import FloatArray, Image

seeds = st.integers(0, 2**32 - 1)


def random_landmarks(seed: int, count: int = 1, spread: float = 6.0) -> FloatArray:
    """Template-like points, moved, turned, scaled and disturbed."""
    random = np.random.default_rng(seed)
    points = ARCFACE_TEMPLATE + random.normal(0, spread, (count, 5, 2))
    angle, scale = random.uniform(-np.pi, np.pi), random.uniform(0.1, 20)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points @ turn.T * scale + random.uniform(-500, 500, 2)).astype(np.float32)


@given(
    angle=st.floats(-np.pi, np.pi),
    scale=st.floats(0.01, 50),
    x=st.floats(-2000, 2000),
    y=st.floats(-2000, 2000),
)
def test_a_similarity_is_recovered_exactly(angle: float, scale: float, x: float, y: float) -> None:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    matrix = np.array([[c, -s, x], [s, c, y]])
    source = ARCFACE_TEMPLATE.astype(np.float64)
    moved = source @ matrix[:, :2].T + matrix[:, 2]
    (found,) = similarity_transforms(source[np.newaxis].astype(np.float32), moved)
    assert np.allclose(found, matrix, rtol=1e-9, atol=1e-8)


@given(seed=seeds)
def test_it_is_scikit_image_s_estimate(seed: int) -> None:
    transform = pytest.importorskip("skimage.transform", reason="scikit-image is not installed")
    landmarks = random_landmarks(seed)
    reference = transform.SimilarityTransform.from_estimate(landmarks[0], ARCFACE_TEMPLATE)
    (found,) = similarity_transforms(landmarks, ARCFACE_TEMPLATE)
    assert np.allclose(found, reference.params[:2], rtol=1e-5, atol=1e-4)


@given(seed=seeds)
def test_never_a_reflection(seed: int) -> None:
    mirrored = random_landmarks(seed) * np.array([-1, 1], np.float32)
    (found,) = similarity_transforms(mirrored, ARCFACE_TEMPLATE)
    assert np.linalg.det(found[:, :2]) >= 0


def test_many_at_once_are_each_on_their_own() -> None:
    landmarks = random_landmarks(9, count=7)
    together = similarity_transforms(landmarks, ARCFACE_TEMPLATE)
    for one, matrix in zip(landmarks, together, strict=True):
        assert np.allclose(similarity_transforms(one[np.newaxis], ARCFACE_TEMPLATE)[0], matrix)


def test_coinciding_points_give_a_crop_and_no_warning() -> None:
    points = np.full((1, 5, 2), 30.0, np.float32)
    (matrix,) = similarity_transforms(points, ARCFACE_TEMPLATE)
    assert np.isfinite(matrix).all()
    assert np.array_equal(matrix[:, :2], np.zeros((2, 2)))
    assert np.allclose(matrix[:, 2], ARCFACE_TEMPLATE.mean(axis=0))
    assert align_faces(np.full((60, 60, 3), 7, np.uint8), points).shape == (1, 112, 112, 3)


@pytest.mark.parametrize("size", [112, 128, 224])
def test_marks_in_the_image_land_on_the_template(size: int) -> None:
    image = np.zeros((400, 500, 3), np.uint8)
    landmarks = random_landmarks(4, spread=0.0)
    landmarks = (landmarks - landmarks.mean(axis=1)) * (90 / np.ptp(landmarks)) + [[260, 190]]
    for x, y in landmarks[0]:
        cv2.circle(image, (round(float(x)), round(float(y))), 2, (255, 255, 255), -1)
    (crop,) = align_faces(image, landmarks.astype(np.float32), size)
    for x, y in ARCFACE_TEMPLATE * (size / 112):
        assert crop[round(float(y)), round(float(x))].min() > 100


def test_outside_the_image_is_black() -> None:
    white = np.full((50, 50, 3), 255, np.uint8)
    shifted = ARCFACE_TEMPLATE[np.newaxis] - np.float32(40)
    (crop,) = align_faces(white, shifted)
    assert crop[80, 80].tolist() == [255, 255, 255]
    assert crop[10, 10].tolist() == [0, 0, 0]


def test_a_small_image_gives_the_crops_that_a_large_one_gives(astronaut_image: Image) -> None:
    small = np.ascontiguousarray(astronaut_image[:300, :300])
    large = np.zeros((1500, 1500, 3), np.uint8)  # outside of an image all is black, too
    large[:300, :300] = small
    landmarks = random_landmarks(4, count=3, spread=2) / 20 + np.float32(150)
    for face in landmarks[:, np.newaxis]:
        np.testing.assert_array_equal(align_faces(small, face), align_faces(large, face))


def test_no_faces_give_no_crops(astronaut_image: Image) -> None:
    none = align_faces(astronaut_image, np.empty((0, 5, 2), np.float32))
    assert none.shape == (0, 112, 112, 3)
