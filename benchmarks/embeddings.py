"""Galleries of any size for the benchmarks, made of real embeddings or of random directions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.decision.calibrations import pack_orientation
from app.decision.face_selection import FaceSelection, select_face
from app.errors import FaceError, ImageError
from app.faces.loading import build_pipeline
from app.folders import find_photos
from app.imaging import ImageLimits
from app.index.port import PRECISION
from app.inference.packs import load_pack
from app.lab.evaluation.cache import PhotoCache
from app.lab.evaluation.pipeline_digest import pipeline_digest
from app.lab.evaluation.protocol import MAX_FACES, Analyser
from app.settings import Device

Vectors = NDArray[np.float32]
CHUNK = 50_000
# A made-up person is one real face, another at 0.88 of its weight, and noise of length 0.3: about
# 0.74 and 0.65 similar to the two, so every gallery has hard neighbours.
SECOND, NOISE = 0.88, 0.3


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Rows scaled to length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_directions(count: int, dimension: int, seed: int) -> Vectors:
    """Unit vectors drawn uniformly from the sphere."""
    generator = np.random.default_rng(seed)
    made = np.empty((count, dimension), np.float32)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        made[start : start + size] = unit(generator.standard_normal((size, dimension)))
    return made


@dataclass(frozen=True, slots=True)
class Gallery:
    """Templates (n, d), and probes (m, d) by kind."""

    templates: Vectors
    probes: dict[str, Vectors]


def embed_folder(folder: Path, pack_name: str, cache: Path) -> tuple[Vectors, NDArray[np.str_]]:
    """The embedding and the person of every photo of a folder of people; `cache` may be that of
    `likeness evaluate`."""
    pack = load_pack(pack_name)
    turned = pack_orientation(pack, PRECISION)
    store = PhotoCache(cache, pipeline_digest(pack, ImageLimits(), turned), print)
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits(), orientation=turned)
    analyser = Analyser(pipeline, store)
    vectors, persons = [], []
    for photo in find_photos(folder):
        try:
            face = select_face(analyser.analyse(photo.path.read_bytes()), FaceSelection.CENTRE)
        except (ImageError, FaceError):
            continue
        vectors.append(face.embedding)
        persons.append(photo.person_id)
    store.close()
    return unit(np.array(vectors)), np.array(persons)


def embed_photos(files: list[str], pack_name: str) -> Vectors:
    """The embeddings (n, d) of the central faces of photos, without those that have no face."""
    pack = load_pack(pack_name)
    turned = pack_orientation(pack, PRECISION)
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits(), orientation=turned)
    vectors = []
    for file in files:
        try:
            faces = pipeline.analyse(Path(file).read_bytes(), max_faces=MAX_FACES)
            vectors.append(select_face(faces, FaceSelection.CENTRE).embedding)
        except (ImageError, FaceError):
            continue
    return unit(np.array(vectors))


def real_gallery(vectors: Vectors, persons: NDArray[np.str_], count: int, seed: int = 1) -> Gallery:
    """`count` templates made of one half of the people; of the other half those with two photos or
    more are enrolled with one and looked for with the others, those with one are strangers."""
    generator = np.random.default_rng(seed)
    names, number = np.unique(persons, return_inverse=True)
    ours = generator.permutation(len(names))[: len(names) // 2]
    source = vectors[np.isin(number, ours)]
    made = np.concatenate(list(made_up(source, count, generator)))
    enrolled, mated, strangers = [], [], []
    for person in np.setdiff1d(np.arange(len(names)), ours):
        photos = np.flatnonzero(number == person)
        if len(photos) > 1:
            enrolled.append(photos[0])
            mated.extend(photos[1:])
        else:
            strangers.append(photos[0])
    enrolled = enrolled[: count // 4]
    made[generator.choice(count, len(enrolled), replace=False)] = vectors[enrolled]
    return Gallery(made, {"mated": vectors[mated], "strangers": vectors[strangers]})


def made_up(source: Vectors, count: int, generator: np.random.Generator) -> Iterator[Vectors]:
    """`count` embeddings (n, d) of made-up people, in pieces, from those of real ones (m, d)."""
    dimension = source.shape[1]
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        first, second = generator.integers(0, len(source), (2, size))
        noise = generator.standard_normal((size, dimension)) * (NOISE / np.sqrt(dimension))
        yield unit(source[first] + SECOND * source[second] + noise)


def random_gallery(dimension: int, count: int) -> Gallery:
    """Nothing resembles anything: the hardest case for codes."""
    return Gallery(
        random_directions(count, dimension, 1),
        {"random": random_directions(2_000, dimension, 2)},
    )
