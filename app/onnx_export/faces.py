"""The real, aligned faces that an exported recogniser is proven on."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from app.onnx_export.errors import ExportError

# Noise would not do: it drives a recogniser into a corner of its range where errors hide.
MINIMUM_FACES = 20
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Pixels become (value - mean) / std before they enter the network."""

    mean: float = 127.5
    std: float = 128.0

    def apply(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, size, size, 3) RGB pixels -> the (n, 3, size, size) the exported network takes."""
        scaled = (faces.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


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


def _load(path: Path, size: int) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ExportError(f"{path} is not an image that can be read")
    if image.shape[:2] != (size, size):
        height, width = image.shape[:2]
        raise ExportError(f"{path} is {width}x{height} pixels, the network takes {size}x{size}")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
