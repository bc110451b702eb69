"""Calibration of a collection on its own people."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from app.decision.calibration import Calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.domain import Domain
from app.decision.duplicates import suspected_duplicates
from app.decision.fitting import Labelled, calibrate, require_persons
from app.decision.limits import NO_LIMITS
from app.decision.pair_lifts import NO_LIFTS
from app.decision.pairs import all_declared
from app.gallery.gallery import Gallery
from app.index.comparator import COSINE

# 12.5 million comparisons: some seconds of one core, and thresholds down to an FMR of 1e-6.
MAX_TEMPLATES = 5_000


@dataclass(frozen=True, slots=True)
class DuplicateSuspect:
    """Two person ids that seem to be one person."""

    person_id_a: str
    person_id_b: str
    similarity: float


@dataclass(frozen=True, slots=True)
class CollectionCalibration:
    """A collection's own calibration. The suspects are only returned and not stored, so that
    deleting a person leaves nothing behind."""

    calibration: Calibration
    suspects: tuple[DuplicateSuspect, ...]


def calibrate_collection(
    gallery: Gallery,
    name: str,
    generator: np.random.Generator,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    *,
    domain: Domain | None = None,
) -> CollectionCalibration:
    """Calibrate a collection on a sample of its own people and put that calibration to use.

    Pairs of people that are probably one person are left out of the false match rates, and
    counted as errors in their upper confidence limits: those hold even where every suspect is an
    innocent twin. Suspects who are declared to be different are not listed. `domain` is the pack's,
    whose direction, limits and lifts hold here too. Raises NotEnoughData, CollectionNotFound or
    EmbeddingSpaceMismatch.
    """
    record = gallery.require(name)
    templates = gallery.store.embeddings.sample(record, MAX_TEMPLATES, generator)
    shared = None if domain is None else domain.shared
    comparator = COSINE if shared is None else shared.comparator
    data = LabelledEmbeddings.of(templates.vectors, templates.person_keys, comparator)
    require_persons(data)
    suspects = suspected_duplicates(data)
    left_out = frozenset((pair.person_a, pair.person_b) for pair in suspects)
    calibration = calibrate(
        Labelled(
            data,
            "collection",
            name,
            left_out,
            shared,
            NO_LIMITS if domain is None else domain.limits,
            NO_LIFTS if domain is None else domain.verification_of(data),
        ),
        record.embedding_space,
        gallery.precision,
        clock,
    )
    gallery.store.calibrations.set(name, calibration.calibration_id, calibration.content())
    # Of each numbered person the first template, whose record has the person's id.
    people, first = np.unique(templates.person_keys, return_index=True)
    declared = all_declared(gallery.store.pairs, name)
    faces = gallery.store.templates.by_key(templates.keys[first].tolist())
    ids = [faces[key].person_id if key in faces else None for key in templates.keys[first].tolist()]
    named = (
        (ids[pair.person_a], ids[pair.person_b], pair.similarity)
        for pair in suspects
        if people[pair.person_b] not in declared.get(int(people[pair.person_a]), ())
    )
    return CollectionCalibration(
        calibration,
        tuple(DuplicateSuspect(a, b, s) for a, b, s in named if a is not None and b is not None),
    )
