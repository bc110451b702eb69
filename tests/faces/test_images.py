"""Quarter turns of an image, and the blob that a network takes."""

import numpy as np
import pytest

from app.faces.images import (
    ROTATIONS,
    inverse,
    to_blob,
    turned_detections,
    turned_image,
    turned_size,
)
from app.types import Detections, Image

HEIGHT, WIDTH = 7, 11
BOX, POINT = (2, 1, 5, 3), (8, 4)


@pytest.fixture
def image() -> Image:
    """A box of 1 and one pixel of 2."""
    made = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    made[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 1
    made[POINT[1], POINT[0]] = 2
    return made


@pytest.fixture
def found() -> Detections:
    return Detections(
        np.array([BOX], np.float32), np.ones(1, np.float32), np.array([[POINT]], np.float32)
    )


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_boxes_and_landmarks_follow_the_pixels(
    image: Image, found: Detections, rotation: int
) -> None:
    turned = turned_image(image, rotation)
    there = turned_detections(found, rotation, HEIGHT, WIDTH)
    assert turned.shape[:2] == turned_size(image.shape, rotation)
    x1, y1, x2, y2 = there.boxes[0].astype(int)
    assert (turned[y1:y2, x1:x2] == 1).all()
    assert (turned == 1).sum() == (y2 - y1) * (x2 - x1) * 3
    assert there.landmarks is not None
    x, y = there.landmarks[0, 0].astype(int)
    assert (turned[y, x] == 2).all()


def test_turns_are_clockwise(image: Image) -> None:
    """The upper left corner comes to the upper right."""
    image[0, 0] = 9
    assert (turned_image(image, 90)[0, -1] == 9).all()


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_the_inverse_leads_back(image: Image, found: Detections, rotation: int) -> None:
    turned = turned_image(image, rotation)
    assert (turned_image(turned, inverse(rotation)) == image).all()
    there = turned_detections(found, rotation, HEIGHT, WIDTH)
    back = turned_detections(there, inverse(rotation), *turned.shape[:2])
    assert np.array_equal(back.boxes, found.boxes)
    assert np.array_equal(back.landmarks, found.landmarks)


IMAGE = np.array([[[[10, 20, 30]]]], np.uint8)  # one BGR pixel


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (1, 7), (48, 48), (320, 224)])
@pytest.mark.parametrize("rgb", [False, True])
def test_a_blob_of_several_images_is_the_scaled_pixels(size: tuple[int, int], rgb: bool) -> None:
    wide = np.random.default_rng(1).integers(0, 256, (3, size[0], size[1] + 2, 3), np.uint8)
    for images in (np.ascontiguousarray(wide[:, :, 1:-1]), wide[:, :, 1:-1], wide[:0, :, 2:]):
        ordered = images[..., ::-1] if rgb else images
        scale = np.float32(1 / 128.0)
        expected = (ordered.transpose(0, 3, 1, 2).astype(np.float32) - np.float32(127.5)) * scale
        np.testing.assert_array_equal(to_blob(images, 127.5, 128.0, rgb=rgb), expected)
        pixels = to_blob(images, 0.0, 1.0, rgb=rgb)
        np.testing.assert_array_equal(pixels, ordered.transpose(0, 3, 1, 2))
        assert pixels.flags.c_contiguous


def test_one_mean_and_std_for_all() -> None:
    assert to_blob(IMAGE, 10.0, 10.0, rgb=False).ravel().tolist() == [0, 1, 2]


def test_a_mean_and_std_for_each_channel_in_the_network_s_order() -> None:
    blob = to_blob(IMAGE, (30.0, 0.0, 0.0), (1.0, 2.0, 5.0), rgb=True)
    assert blob.ravel().tolist() == [0, 10, 2]
    assert (blob.shape, blob.dtype) == ((1, 3, 1, 1), np.float32)
