"""Images before a network sees them: quarter turns, a network's input, alignment; and a drawn face.

Alignment is the similarity transform that carries five landmarks onto the ArcFace template. Angles
are degrees clockwise.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import LikenessError, PackError
from app.inference.session import Network
from app.inference.sharing import done_together, idle_threads
from app.types import Channels, Detections, FloatArray, Image, PixelScale

ROTATIONS = (0, 90, 180, 270)
# As lists of x and y.
Points: TypeAlias = list[list[float]]


def inverse(rotation: int) -> int:
    """The turn that undoes another."""
    return -rotation % 360


def turned_size(shape: tuple[int, ...], rotation: int) -> tuple[int, int]:
    """Height and width after a turn, of an image whose shape begins with height and width."""
    height, width = shape[:2]
    return (width, height) if rotation % 180 else (height, width)


def turned_image(image: Image, rotation: int) -> Image:
    """A turned view of an image; no pixel is copied."""
    return np.rot90(image, -rotation // 90)


def turned_detections(found: Detections, rotation: int, height: int, width: int) -> Detections:
    """What was found in an image of that size, in the pixels of the turned image.

    Boxes are edges, from 0 to the image's width; landmarks are pixels, from 0 to one less.
    """
    if rotation == 0:
        return found
    size = np.array([width, height], np.float32)
    corners = _turned(found.boxes.reshape(-1, 2, 2), rotation, size)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    landmarks = found.landmarks
    if landmarks is not None:
        landmarks = _turned(landmarks, rotation, size - 1)
    return Detections(boxes, found.scores, landmarks)


def _turned(points: FloatArray, rotation: int, end: FloatArray) -> FloatArray:
    """Points (..., 2) of an area that ends at `end`."""
    x, y = points[..., 0], points[..., 1]
    turned = {
        90: (end[1] - y, x),
        180: (end[0] - x, end[1] - y),
        270: (y, end[0] - x),
    }[rotation]
    return np.stack(turned, axis=-1)


def network_input(model: Network, images: Image, scale: PixelScale) -> NDArray[Any]:
    """The input of a network for (n, height, width, 3) BGR images: the images as they are, if the
    network's graph converts pixels, or else their blob."""
    if model.takes_pixels:
        return images
    return to_blob(images, scale.mean, scale.std, rgb=scale.rgb)


class DirectNetwork:
    """A network that makes no batches, for other processes: `SubmittingNetwork`."""

    def __init__(self, network: Network, scale: PixelScale) -> None:
        self.network = network
        self._scale = scale

    @property
    def output_names(self) -> list[str]:
        return self.network.output_names

    @property
    def cpu_nodes(self) -> tuple[str, ...]:
        return self.network.cpu_nodes

    def submit(self, images: Image) -> list[Future[list[FloatArray]]]:
        """The answers to each of the images, which are there at once."""
        found = list[Future[list[FloatArray]]]()
        for start in range(len(images)):
            one = Future[list[FloatArray]]()
            pixels = images[start : start + 1]
            one.set_result(self.network.run(network_input(self.network, pixels, self._scale)))
            found.append(one)
        return found


@contextmanager
def first_answer(network: Network, side: int, answer: str, member: str) -> Iterator[None]:
    """Within it a new network is given one face of `side` pixels. Raises PackError, with the
    `answer` that is expected and the member of pack.toml to correct, whatever the network raises
    but errors of the device."""
    try:
        yield
    except LikenessError:
        raise
    except Exception as error:  # ONNX Runtime raises its own types
        raise PackError(
            f"{network.path} does not take one {side} x {side} face and answer {answer}: {error}. "
            f"Correct {member} in pack.toml."
        ) from error


def blank_crops(model: Network, side: int) -> Image:
    """Black crops (n, side, side, 3) that a new network is tried with: two if it is given several
    at a time, because it may take one alone and fail with more, or answer them mixed up."""
    several = model.dynamic_batch and not model.batches_itself
    return np.zeros((2 if several else 1, side, side, 3), np.uint8)


def run_on_crops(model: Network, crops: Image, scale: PixelScale, most: int = 1) -> FloatArray:
    """The first output for each of (n, size, size, 3) BGR crops, n > 0. A network that makes its
    own batches gets all crops in one call, one that takes any batch `most` at a time, and any other
    one at a time. Threads that are idle help."""
    if model.batches_itself:
        step = len(crops)
    else:
        each = -(-len(crops) // (1 + idle_threads()))
        step = min(most, each) if model.dynamic_batch else 1

    def answers(start: int) -> FloatArray:
        return model.run(network_input(model, crops[start : start + step], scale))[0]

    parts = done_together([partial(answers, start) for start in range(0, len(crops), step)])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def to_blob(images: Image, mean: Channels, std: Channels, *, rgb: bool) -> NDArray[Any]:
    """(n, height, width, 3) BGR uint8 -> (n, 3, height, width) float32, (value - mean) / std,
    with one mean and std or one for each channel of the result.

    Bytes are sorted into planes first and converted then: a third of the time of the reverse, and a
    tenth of that of OpenCV's `blobFromImages` at 320 x 320. Few calls, because Python's lock may
    change hands at each.
    """
    count, height, width, _ = images.shape
    size = count * height * width
    # A byte between the planes: OpenCV writes planes that are aligned alike past the cache, and
    # these are read at once.
    planes = np.empty((3, size + 1), np.uint8)[:, :size].reshape(3, count, height, width)
    rows = [plane.reshape(-1, width) for plane in planes]
    # All images at once, one below the other.
    cv2.split(images.reshape(-1, width, 3), rows[::-1] if rgb else rows)
    blob = np.empty((count, 3, height, width), np.float32)
    blob[:] = planes.swapaxes(0, 1)
    if mean != 0:
        np.subtract(blob, _each_channel(mean), out=blob)
    if std != 1:
        np.multiply(blob, _each_channel(1 / np.asarray(std)), out=blob)
    return blob


def _each_channel(values: Channels | NDArray[np.float64]) -> FloatArray:
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


def with_mirror_images(crops: Image) -> Image:
    """(n, size, size, 3) crops and then their mirror images: (2n, size, size, 3)."""
    both = np.empty((2 * len(crops), *crops.shape[1:]), np.uint8)
    straight, mirrored = both[: len(crops)], both[len(crops) :]
    straight[:] = crops
    for crop, place in zip(crops, mirrored, strict=True):
        cv2.flip(crop, 1, dst=place)
    return both


# The five points of a 112 x 112 ArcFace crop: eyes, nose tip, mouth corners, left to right as
# seen in the image (Deng et al., "ArcFace", CVPR 2019, and its published reference code).
ARCFACE_TEMPLATE: FloatArray = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    dtype=np.float32,
)
TEMPLATE_SIZE = 112


def similarity_transforms(landmarks: FloatArray, target: FloatArray) -> NDArray[np.float64]:
    """The least-squares similarities that carry (n, k, 2) points onto `target` (k, 2).

    Closed form of S. Umeyama, "Least-squares estimation of transformation parameters between two
    point patterns", IEEE PAMI 13(4), 1991, in two dimensions, where rotation and scale are one
    complex number. Reflections are never produced. Returns (n, 2, 3) matrices; points that
    coincide give a matrix of zeros and the target's centre.
    """
    middle, goal = centred(target.tolist())
    matrices = [_similarity(points, middle, goal) for points in landmarks.tolist()]
    return np.array(matrices, np.float64).reshape(-1, 2, 3)


def centred(points: Points) -> tuple[list[float], Points]:
    """The mean of some points, x and y, and the points relative to it.

    Of five points in plain Python: calls of NumPy would take longer than the arithmetic.
    """
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return [x, y], [[one - x, other - y] for one, other in points]


def _similarity(points: Points, middle: list[float], goal: Points) -> Points:
    """The matrix of one face; `goal` are the target's points, relative to their `middle`."""
    (x, y), relative = centred(points)
    spread = cosine = sine = 0.0
    for (a, b), (to_x, to_y) in zip(relative, goal, strict=True):
        spread += a * a + b * b
        cosine += a * to_x + b * to_y
        sine += a * to_y - b * to_x
    scale = 1 / spread if spread > 0 else 0.0
    c, s = cosine * scale, sine * scale
    return [[c, -s, middle[0] - (c * x - s * y)], [s, c, middle[1] - (s * x + c * y)]]


def enlargement(landmarks: FloatArray, size: int = TEMPLATE_SIZE) -> NDArray[np.float64]:
    """How many pixels of its crop one pixel of each of the (n, 5, 2) faces becomes, shape (n,)."""
    target = ARCFACE_TEMPLATE * (size / TEMPLATE_SIZE)
    matrices = similarity_transforms(landmarks, target)
    return np.hypot(matrices[:, 0, 0], matrices[:, 0, 1])


def align_faces(image: Image, landmarks: FloatArray, size: int = TEMPLATE_SIZE) -> Image:
    """Cut (n, 5, 2) faces out of a BGR image as (n, size, size, 3) uint8 crops."""
    target = ARCFACE_TEMPLATE * (size / TEMPLATE_SIZE)
    return cut_faces(image, similarity_transforms(landmarks, target), size)


# OpenCV cuts a face out of four channels in less than half the time that three take. For an image
# of at most so many times the pixels of the crops that is worth a copy with a fourth channel.
_WIDENED_UP_TO = 10


def cut_faces(image: Image, matrices: NDArray[np.float64], size: int) -> Image:
    """The (n, size, size, 3) uint8 crops that (n, 2, 3) affine maps take out of a BGR image."""
    crops = np.empty((len(matrices), size, size, 3), dtype=np.uint8)
    if image.shape[0] * image.shape[1] > _WIDENED_UP_TO * len(matrices) * size**2:
        for crop, matrix in zip(crops, matrices, strict=True):
            cv2.warpAffine(image, matrix, (size, size), dst=crop)
        return crops
    wide = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
    for crop, matrix in zip(crops, matrices, strict=True):
        cv2.cvtColor(cv2.warpAffine(wide, matrix, (size, size)), cv2.COLOR_BGRA2BGR, dst=crop)
    return crops


def drawn_face(height: int, width: int) -> Image:
    """A frontal face on a plain ground, (height, width, 3) BGR uint8; it fills 0.9 of the shorter
    side, as in an aligned crop."""
    side = 256
    face = np.full((side, side, 3), (150, 140, 120), np.uint8)
    _ellipse(face, (128, 118), (88, 112), (35, 45, 60))  # hair
    _ellipse(face, (128, 138), (74, 98), (135, 165, 215))
    for x in (94, 162):
        _ellipse(face, (x, 106), (20, 5), (40, 50, 70))  # brow
        _ellipse(face, (x, 120), (15, 8), (235, 240, 240))
        _ellipse(face, (x, 120), (7, 7), (40, 50, 60))
    _ellipse(face, (128, 150), (11, 24), (110, 140, 195))  # nose
    _ellipse(face, (128, 172), (16, 6), (90, 115, 170))
    _ellipse(face, (128, 196), (30, 9), (90, 85, 175))  # mouth
    light = np.linspace(1.1, 0.75, side, dtype=np.float32)[np.newaxis, :, np.newaxis]
    face = cv2.GaussianBlur(np.clip(face * light, 0, 255).astype(np.uint8), (0, 0), 2.5)
    fitting = min(height, width)
    scaled = cv2.resize(face, (fitting, fitting), interpolation=cv2.INTER_AREA)
    image = np.empty((height, width, 3), np.uint8)
    image[:] = face[0, 0]
    top, left = (height - fitting) // 2, (width - fitting) // 2
    image[top : top + fitting, left : left + fitting] = scaled
    return image


def _ellipse(
    image: Image, centre: tuple[int, int], axes: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    cv2.ellipse(image, centre, axes, 0, 0, 360, colour, cv2.FILLED)
