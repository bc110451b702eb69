"""Faces of known quality, candidates of known similarity, and galleries of made-up people."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from app.decision.comparisons import LabelledEmbeddings
from app.gallery.candidates import Candidate
from app.store.records import FaceRecord
from app.types import Face, Quality

GOOD = Quality(
    face_size_px=100,
    yaw=0,
    pitch=0,
    roll=0,
    sharpness=300,
    brightness=0.5,
    detector_score=0.9,
    embedding_norm=20,
)


def face(x: float = 500, y: float = 300, size: float = 100, **quality: Any) -> Face:
    """A square face around a point."""
    box = np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2], np.float32)
    return Face(
        box=box,
        landmarks=np.full((5, 2), [x, y], np.float32),
        score=0.9,
        quality=replace(GOOD, face_size_px=size, **quality),
    )


def candidate(person_id: str, similarity: float, margin: float | None = None) -> Candidate:
    record = FaceRecord(1, 1, f"face-{person_id}", person_id, {}, datetime(2024, 1, 1, tzinfo=UTC))
    return Candidate(record, similarity, margin)


def people(
    count: int,
    faces: int | Sequence[int] = 1,
    *,
    dimension: int = 64,
    noise: float = 0.5,
    seed: int = 0,
) -> LabelledEmbeddings:
    """Made-up people: each a random direction, each face of theirs that direction and noise."""
    generator = np.random.default_rng(seed)
    held = np.broadcast_to(faces, count)
    centres = generator.normal(size=(count, dimension)) / np.sqrt(dimension)
    persons = np.repeat(np.arange(count), held)
    vectors = centres[persons] + noise * generator.normal(size=(len(persons), dimension)) / np.sqrt(
        dimension
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return LabelledEmbeddings(vectors.astype(np.float32), persons)
