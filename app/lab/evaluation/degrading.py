"""Faces made worse on purpose, to find what the embeddings of bad photos have in common.

Aligned faces are degraded, not photos: the direction then does not depend on what the detector
makes of a degraded photo, and a pipeline that turns photos upright still shows what an upside-down
face is to its recogniser.
"""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from app.decision.policy import FaceSelection
from app.errors import FaceError, ImageError
from app.lab.evaluation.labels import LabelledPeople, LabelNoise
from app.lab.evaluation.protocol import Analyser, Tick, in_threads, read_photo
from app.types import FloatArray, Image

# A direction of some hundred numbers is known well from so many faces.
FACES = 600


def _blurred(face: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(face, (0, 0), 6 * face.shape[0] / 112), np.uint8)


def _dark(face: Image) -> Image:
    return (face * 0.05).astype(np.uint8)


def _upside_down(face: Image) -> Image:
    return np.ascontiguousarray(face[::-1, ::-1])


# Lengths are in pixels of an aligned face of 112.
DEGRADATIONS: Mapping[str, Callable[[Image], Image]] = {
    "blur of 6 pixels": _blurred,
    "brightness x 0.05": _dark,
    "turned by 180 degrees": _upside_down,
}


def _small(face: Image) -> Image:
    size = face.shape[0]
    small = cv2.resize(face, (size // 4, size // 4), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)


def _a_little_blurred(face: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(face, (0, 0), 2 * face.shape[0] / 112), np.uint8)


def _compressed(face: Image) -> Image:
    _, data = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 10])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def _noisy(face: Image) -> Image:
    generator = np.random.default_rng(zlib.crc32(face.tobytes()))  # the same in whichever thread
    return np.clip(face + generator.normal(0, 40, face.shape), 0, 255).astype(np.uint8)


# Faces that a verification decides on, but whose comparisons match more often than promised.
MILD_DEGRADATIONS: Mapping[str, Callable[[Image], Image]] = {
    "blur of 2 pixels": _a_little_blurred,
    "28 pixels": _small,
    "JPEG quality 10": _compressed,
    "noise of 40": _noisy,
}


def photos_to_degrade(people: LabelledPeople, noise: LabelNoise) -> list[str]:
    """The first photo of each of FACES people at most, spread over all of them."""
    first: dict[str, str] = {}
    for image, person in zip(people.images, people.persons, strict=True):
        if image not in noise.images:
            first.setdefault(person, image)
    photos = list(first.values())
    step = max(1.0, len(photos) / FACES)
    return [photos[int(i * step)] for i in range(min(len(photos), FACES))]


def embed_degraded(
    analyser: Analyser,
    folder: Path,
    names: list[str],
    selection: FaceSelection,
    tick: Tick = lambda: None,
    *,
    ways: Mapping[str, Callable[[Image], Image]] = DEGRADATIONS,
) -> dict[str, FloatArray]:
    """The embeddings (n, d) of the face that counts in each photo, by how it was degraded; photos
    without such a face are left out."""

    def embed(name: str) -> FloatArray | None:
        try:
            face = analyser.aligned(read_photo(folder / name), selection)
        except (ImageError, FaceError):
            return None
        return analyser.embed_aligned(np.stack([made(face) for made in ways.values()]))

    found = [one for one in in_threads(embed, names, tick) if one is not None]
    by_kind = np.stack(found).transpose(1, 0, 2)  # raises ValueError for none at all
    return dict(zip(ways, by_kind, strict=True))
