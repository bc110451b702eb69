"""Faces made worse on purpose, to find what the embeddings of bad photos have in common.

Aligned faces are degraded, not photos: the direction then does not depend on what the detector
makes of a degraded photo, and a pipeline that turns photos upright still shows what an upside-down
face is to its recogniser.
"""

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
) -> dict[str, FloatArray]:
    """The embeddings (n, d) of the face that counts in each photo, by how it was degraded; photos
    without such a face are left out."""

    def embed(name: str) -> FloatArray | None:
        try:
            face = analyser.aligned(read_photo(folder / name), selection)
        except (ImageError, FaceError):
            return None
        return analyser.embed_aligned(np.stack([made(face) for made in DEGRADATIONS.values()]))

    found = [one for one in in_threads(embed, names, tick) if one is not None]
    by_kind = np.stack(found).transpose(1, 0, 2)  # raises ValueError for none at all
    return dict(zip(DEGRADATIONS, by_kind, strict=True))
