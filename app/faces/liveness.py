"""Passive liveness: is this a face, or a photo or a screen that shows one?

Minivision's Silent-Face-Anti-Spoofing: small networks look at the face with different amounts of
what surrounds it, and their softmax outputs are averaged. It sees print and replay attacks of the
kind it was trained on, from single photos; it is no proof that a person was there.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from app.errors import PackError
from app.faces.images import first_answer, run_on_crops
from app.inference.pack_spec import LivenessSpec
from app.inference.session import Network
from app.types import FloatArray, Image, PixelScale


class LivenessNetwork:
    """One network and the part of the photo it looks at."""

    def __init__(self, model: Network, spec: LivenessSpec) -> None:
        """Raises PackError when the network does not take or answer what the pack announces."""
        self._model = model
        self._spec = spec
        self._scale = PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")
        blank = np.zeros((1, spec.input_size, spec.input_size, 3), dtype=np.uint8)
        with first_answer(model, spec.input_size, "its classes", "liveness"):
            classes = self._answer(blank).shape[1]
        if not spec.live_class < classes:
            raise PackError(
                f"{model.path} knows {classes} classes, and live_class is {spec.live_class}; "
                "correct liveness in pack.toml."
            )

    def scores(self, image: Image, boxes: FloatArray) -> FloatArray:
        """(n,) probabilities that the faces in the (n, 4) `boxes` of an image are live."""
        size = self._spec.input_size
        regions = [surroundings(image, box, self._spec.scale) for box in boxes]
        crops = [cv2.resize(region, (size, size)) for region in regions]
        return softmax(self._answer(np.asarray(crops, np.uint8)))[:, self._spec.live_class]

    def _answer(self, crops: Image) -> FloatArray:
        return run_on_crops(self._model, crops, self._scale)


class LivenessCheck:
    """All liveness networks of a pack: the mean of their scores."""

    def __init__(self, networks: Sequence[LivenessNetwork]) -> None:
        self._networks = networks

    def scores(self, image: Image, boxes: FloatArray) -> FloatArray:
        """(n,) chances that the faces in the (n, 4) `boxes` of an image are live, 0…1."""
        if len(boxes) == 0:
            return np.empty(0, np.float32)
        every = [network.scores(image, boxes) for network in self._networks]
        return np.asarray(np.mean(every, axis=0), np.float32)


def surroundings(image: Image, box: FloatArray, scale: float) -> Image:
    """`scale` times a box about its middle, moved into the image, and less than that where the
    image is smaller; at least one pixel."""
    height, width = image.shape[:2]
    sides = np.maximum(box[2:] - box[:2], 1)
    limits = (np.array([width, height], np.float32) - 1) / sides
    half = sides * min(scale, *limits.tolist()) / 2
    middle = np.clip((box[:2] + box[2:]) / 2, half, [width - 1, height - 1] - half)
    x1, y1 = np.maximum(middle - half, 0).astype(int).tolist()
    x2, y2 = np.minimum(middle + half, [width - 1, height - 1]).astype(int).tolist()
    return image[y1 : y2 + 1, x1 : x2 + 1]


def softmax(values: FloatArray) -> FloatArray:
    """Row by row, (n, classes)."""
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
