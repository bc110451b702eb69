"""A collection measured on its own templates: each person is a stranger to all others.

One template of each person is searched for among the other persons' (FPIR) and, where the person
has another, among all templates but itself (FNIR). The gallery has one person fewer than the
collection.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from app.gallery.gallery import Gallery
from app.index.comparator import Comparator
from app.index.person_scores import PersonScore
from app.index.port import Templates
from app.lab.attestation.cells import UNCHANGED, BestScores, Faces, Ids, Searched
from app.lab.attestation.document import AttestationError
from app.store.records import CollectionRecord

# Of larger collections so many people, drawn by a fixed seed, are searched for among everybody.
MAX_PROBES = 10_000
SEED = 0
KEYS_AT_ONCE = 500


@dataclass(slots=True)
class _Inventory:
    """The first template of each person, how many there are, and what all of them hold."""

    first: dict[int, int] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    digests: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    def add(self, page: Templates) -> None:
        columns = zip(page.keys.tolist(), page.person_keys.tolist(), page.vectors, strict=True)
        for key, person, vector in columns:
            self.first.setdefault(person, key)
            self.counts[person] += 1
            self.digests[person].append(hashlib.sha256(vector.astype("<f4").tobytes()).digest())

    def digest(self) -> str:
        """SHA-256 of the embeddings by person, whatever ids and keys they have."""
        parts = sorted(b"".join(sorted(parts)) for parts in self.digests.values())
        whole = hashlib.sha256()
        for part in parts:
            whole.update(hashlib.sha256(part).digest())
        return whole.hexdigest()


@dataclass(frozen=True, slots=True)
class MeasuredCollection:
    """The searches of a collection and what they were of."""

    searched: Searched
    persons: int
    templates: int
    sha256: str


def measure_collection(
    gallery: Gallery,
    record: CollectionRecord,
    comparator: Comparator,
    score: PersonScore = PersonScore.BEST,
    *,
    named: bool,
) -> MeasuredCollection:
    """Search a collection for its own people, by a `score` of several templates; by another one
    than the best all templates are in memory at once. `named`: ids are needed, for groups.

    Raises AttestationError for an empty collection, or one that changes meanwhile.
    """
    inventory = _Inventory()
    for page in gallery.templates(record.name):
        inventory.add(page)
    if not inventory.first:
        raise AttestationError(
            f"The collection {record.name} has no templates, so there is nothing to measure."
        )
    persons = _drawn(sorted(inventory.first))
    probes = _load(gallery, record.name, [inventory.first[person] for person in persons])
    best = BestScores(probes, comparator)
    pages = (Faces(p.vectors, p.person_keys, p.keys) for p in gallery.templates(record.name))
    if score is PersonScore.BEST:
        for some in pages:
            best.add(some)
    elif held := list(pages):
        best.add_persons(_joined(held), score)
    if gallery.require(record.name).revision != record.revision:
        raise AttestationError(
            f"The collection {record.name} changed while it was measured. Run it again when nobody "
            "is enrolled or deleted, or on a copy of the database."
        )
    names = _names(gallery, probes) if named else [str(person) for person in probes.persons]
    several = np.array([inventory.counts[person] > 1 for person in probes.persons.tolist()])
    return MeasuredCollection(
        Searched(
            UNCHANGED,
            "none",
            len(inventory.first) - 1,
            best,
            names,
            best.of(several),
            [name for name, able in zip(names, several, strict=True) if able],
            both_ways=True,
        ),
        len(inventory.first),
        sum(inventory.counts.values()),
        inventory.digest(),
    )


def _drawn(persons: list[int]) -> list[int]:
    if len(persons) <= MAX_PROBES:
        return persons
    drawn = np.random.default_rng(SEED).permutation(len(persons))[:MAX_PROBES]
    return [persons[n] for n in np.sort(drawn)]


def _load(gallery: Gallery, name: str, keys: Sequence[int]) -> Faces:
    rising = sorted(keys)
    pages = [
        gallery.templates_by_key(name, np.array(rising[start : start + KEYS_AT_ONCE], np.int64))
        for start in range(0, len(rising), KEYS_AT_ONCE)
    ]
    return _joined([Faces(page.vectors, page.person_keys, page.keys) for page in pages])


def _joined(pages: Sequence[Faces]) -> Faces:
    return Faces(*(
        np.concatenate([getattr(page, column) for page in pages])
        for column in ("vectors", "persons", "keys")
    ))  # fmt: skip


def _names(gallery: Gallery, probes: Faces) -> list[str]:
    keys: Ids = probes.keys
    names: list[str] = []
    for start in range(0, len(keys), KEYS_AT_ONCE):
        some = keys[start : start + KEYS_AT_ONCE].tolist()
        faces = gallery.store.templates.by_key(some)
        names.extend(faces[key].person_id if key in faces else "" for key in some)
    return names
