"""Faces degraded on purpose, or with the lower half covered, to find what the embeddings of bad
photos and of covered faces have in common.

Aligned faces are degraded, not photos: the direction then does not depend on what the detector
makes of a degraded photo, and a pipeline that turns photos upright still shows what an upside-down
face is to its recogniser.
"""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from app.decision.face_selection import FaceSelection
from app.errors import FaceError, ImageError
from app.faces.images import ARCFACE_TEMPLATE, TEMPLATE_SIZE
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
    without such a face are left out. Empty where all are."""

    def embed(name: str) -> FloatArray | None:
        try:
            face = analyser.aligned(read_photo(folder / name), selection)
        except (ImageError, FaceError):
            return None
        return analyser.embed_aligned(np.stack([made(face) for made in ways.values()]))

    found = [one for one in in_threads(embed, names, tick) if one is not None]
    if not found:
        return {}
    by_kind = np.stack(found).transpose(1, 0, 2)
    return dict(zip(ways, by_kind, strict=True))


# Each face is covered by so many surfaces of different colours, textures and outlines.
COVERS = 3
SEED = 19


def cover(face: Image, generator: np.random.Generator) -> Image:
    """An aligned face (size, size, 3) with a surface from the nose to the chin."""
    size = face.shape[0]
    outline = _outline(generator) * (size / TEMPLATE_SIZE)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [outline.astype(np.int32)], 255, cv2.LINE_AA)
    share = mask[:, :, np.newaxis] / 255
    surface = np.clip(_surface(size, generator), 0, 255)
    return np.asarray(face * (1 - share) + surface * share, np.uint8)


def _outline(generator: np.random.Generator) -> NDArray[np.float64]:
    """Its corners (6, 2) in an aligned face, moved about by some pixels."""
    right, left, nose, right_mouth, left_mouth = ARCFACE_TEMPLATE.astype(np.float64)
    eyes, mouth = (right + left) / 2, (right_mouth + left_mouth) / 2
    down, side = mouth - eyes, 0.55 * (left - right)
    corners = np.array([
        (nose + eyes) / 2 + generator.uniform(-0.05, 0.4) * down,
        nose + 1.15 * side, left_mouth + 0.45 * side, mouth + 0.75 * down,
        right_mouth - 0.45 * side, nose - 1.15 * side,
    ])  # fmt: skip
    return corners + generator.normal(0, 2, corners.shape)


def _surface(size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """One colour or grey, half of them each; plain, grained or striped, a third of them each."""
    colour = generator.uniform(10, 245, 3 if generator.random() < 0.5 else 1)
    surface = np.ones((size, size, 3)) * colour
    match generator.integers(3):
        case 1:
            grain = generator.normal(0, 1, (size, size, 1))
            surface += generator.uniform(5, 25) * grain
        case 2:
            rows = np.arange(size)[:, np.newaxis, np.newaxis] / generator.uniform(1, 4)
            surface += generator.uniform(5, 40) * np.sin(rows)
    return surface


def embed_covered(
    analyser: Analyser,
    folder: Path,
    names: list[str],
    selection: FaceSelection,
    tick: Tick = lambda: None,
) -> tuple[FloatArray, FloatArray]:
    """The embeddings (n, d) of the face that counts in each photo, and (n, COVERS, d) of the same
    covered; photos without such a face are left out."""
    number = {name: i for i, name in enumerate(names)}

    def embed(name: str) -> FloatArray | None:
        try:
            face = analyser.aligned(read_photo(folder / name), selection)
        except (ImageError, FaceError):
            return None
        generator = np.random.default_rng((SEED, number[name]))
        return analyser.embed_aligned(
            np.stack([face, *(cover(face, generator) for _ in range(COVERS))])
        )

    found = [one for one in in_threads(embed, names, tick) if one is not None]
    embeddings = np.stack(found)  # raises ValueError for none at all
    return embeddings[:, 0], embeddings[:, 1:]
