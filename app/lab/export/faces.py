"""The real, aligned faces that an exported recogniser is proven on."""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import LikenessError
from app.faces.detect import Detector
from app.faces.images import ARCFACE_TEMPLATE, TEMPLATE_SIZE, cut_faces, similarity_transforms
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.lab.export.parity import ExportError
from app.settings import Device
from app.types import Channels, FloatArray

# Noise would not do: it drives a recogniser into a corner of its range where errors hide.
MINIMUM_FACES = 20
MAXIMUM_FACES = 200
# Of pixels from 0 to 255, RGB, as torchvision normalises them.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Pixels become (value - mean) / std before they enter the network; one number, or one a
    channel in the order the network takes them."""

    mean: Channels = 127.5
    std: Channels = 128.0
    rgb: bool = True

    def apply(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, height, width, 3) RGB pixels -> the (n, 3, height, width) the network takes."""
        ordered = faces if self.rgb else faces[..., ::-1]
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        scaled = (ordered.astype(np.float32) - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def parse_channels(text: str, option: str, *, rgb: bool) -> Channels:
    """A mean or standard deviation of pixels as it is written on a command line: a number, three in
    the order in which the network takes the channels, or `imagenet`; `option` is mean or std.

    Raises ExportError.
    """
    if text == "imagenet":
        values = IMAGENET_MEAN if option == "mean" else IMAGENET_STD
        return values if rgb else values[::-1]
    try:
        match [float(part) for part in text.split(",")]:
            case [one] if math.isfinite(one):
                return one
            case [first, second, third] if math.isfinite(first + second + third):
                return first, second, third
    except ValueError:
        pass
    raise ExportError(
        f"--{option} is a number, three numbers with commas between them, or imagenet; not {text}"
    )


def load_faces(folder: Path, size: int) -> NDArray[np.uint8]:
    """All faces of a folder as (n, size, size, 3) RGB, in the order of their names.

    Raises ExportError when the folder holds fewer than MINIMUM_FACES, or one of another size.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder of aligned faces")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(paths) < MINIMUM_FACES:
        raise ExportError(
            f"{folder} holds {len(paths)} images; a proof takes at least {MINIMUM_FACES} aligned "
            f"faces of {size}x{size} pixels"
        )
    return np.stack([_load(path, size) for path in paths])


def photos_in(folder: Path, limit: int) -> list[Path]:
    """At most `limit` of the photos in a folder and below it, taken evenly over their names.
    Raises ExportError where it is no folder."""
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder of photos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return paths[:: max(1, len(paths) // limit)][:limit]


def align_folder(
    folder: Path, size: int, limit: int = MAXIMUM_FACES, target: FloatArray | None = None
) -> NDArray[np.uint8]:
    """The largest face of each photo in a folder and below it, found and aligned by the default
    pack: (n, size, size, 3) RGB, n at most `limit`, taken evenly over the photos' names. `target`:
    where the landmarks (5, 2) of the crops lie; None: where ArcFace's do.

    Photos of exactly size x size are taken for aligned faces. Raises ExportError when fewer than
    MINIMUM_FACES are found.
    """
    chosen = photos_in(folder, limit)
    detector = _default_detector()
    goal = ARCFACE_TEMPLATE * (size / TEMPLATE_SIZE) if target is None else target
    found = [face for path in chosen if (face := _aligned(path, size, detector, goal)) is not None]
    if len(found) < MINIMUM_FACES:
        raise ExportError(
            f"{len(found)} faces were found in {folder}; a proof takes at least {MINIMUM_FACES}"
        )
    return np.stack(found)


def _default_detector() -> Detector:
    try:
        pack = load_pack("default")
        return Detector(OnnxModel(pack.detector_path, Device.CPU), pack.detector)
    except LikenessError as error:
        raise ExportError(error.detail) from error


def _aligned(
    path: Path, size: int, detector: Detector, target: FloatArray
) -> NDArray[np.uint8] | None:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        return None
    pixels = np.asarray(image, np.uint8)
    if pixels.shape[:2] == (size, size):
        return np.ascontiguousarray(pixels[..., ::-1])
    faces = detector.detect(pixels)
    if len(faces) == 0 or faces.landmarks is None:
        return None
    largest = np.argmax(np.prod(faces.boxes[:, 2:] - faces.boxes[:, :2], axis=1))
    matrices = similarity_transforms(faces.landmarks[largest : largest + 1], target)
    crops = cut_faces(pixels, matrices, size)
    return np.ascontiguousarray(crops[0][..., ::-1])


def _load(path: Path, size: int) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ExportError(f"{path} is not an image that can be read")
    if image.shape[:2] != (size, size):
        height, width = image.shape[:2]
        raise ExportError(f"{path} is {width}x{height} pixels, the network takes {size}x{size}")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
