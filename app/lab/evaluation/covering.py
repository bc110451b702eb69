"""Faces whose lower half is covered on purpose, to find what the embeddings of covered faces have
in common."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from app.decision.policy import FaceSelection
from app.errors import FaceError, ImageError
from app.faces.images import ARCFACE_TEMPLATE, TEMPLATE_SIZE
from app.lab.evaluation.protocol import Analyser, Tick, in_threads, read_photo
from app.types import FloatArray, Image

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
