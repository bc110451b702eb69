"""A folder of people measured: people with two photos are enrolled, people with one are strangers.

Everybody enrolled has one photo in the gallery and is searched for by one more; so all searches are
of different people, and errors are independent but for the gallery that they share.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.decision.comparisons import LabelledEmbeddings
from app.decision.domain import DEGRADED, NO_LIMITS, Limits
from app.decision.face_selection import FaceSelection
from app.decision.gates import QualityGate, check_quality
from app.decision.policy import CollectionPolicy
from app.errors import FaceError
from app.index.comparator import Comparator
from app.lab.attestation.cells import LOWEST, UNCHANGED, BestScores, Change, Faces, Searched
from app.lab.evaluation.identification import gallery_likeness
from app.lab.evaluation.labels import EvaluationError, LabelledPeople, LabelNoise
from app.lab.evaluation.protocol import Analyser, EnrolledPhotos, Tick, enrol_photos
from app.types import Face, FloatArray

FacesByName = Mapping[str, Face]


@dataclass(frozen=True, slots=True)
class Roles:
    """Photos by what they are for, and whose they are: paths and names, parallel."""

    enrolled: tuple[str, ...]
    mates: tuple[str, ...]
    persons: tuple[str, ...]
    strangers: tuple[str, ...]
    stranger_names: tuple[str, ...]

    @property
    def photos(self) -> tuple[str, ...]:
        """All of them."""
        return self.enrolled + self.mates + self.strangers


@dataclass(frozen=True, slots=True)
class Measure:
    """How photos are embedded and compared."""

    analyser: Analyser
    folder: LabelledPeople
    selection: FaceSelection
    comparator: Comparator
    policy: CollectionPolicy
    limits: Limits = NO_LIMITS


def roles_of(people: LabelledPeople, photos: EnrolledPhotos, noise: LabelNoise) -> Roles:
    """By the usable photos of each person. Raises EvaluationError where nobody can be enrolled."""
    second = {b for _, b in noise.same_people}
    by_person: dict[str, list[str]] = {}
    for image, person in zip(people.images, people.persons, strict=True):
        if image in photos.faces and image not in noise.images and person not in second:
            by_person.setdefault(person, []).append(image)
    several = {person: images for person, images in by_person.items() if len(images) > 1}
    if not several:
        raise EvaluationError(
            f"Nobody below {people.folder} has two usable photos, so nobody can be enrolled and "
            "searched for. Give at least one person two photos."
        )
    single = {person: images[0] for person, images in by_person.items() if len(images) == 1}
    return Roles(
        tuple(images[0] for images in several.values()),
        tuple(images[1] for images in several.values()),
        tuple(several),
        tuple(single.values()),
        tuple(single),
    )


def search_unchanged(measure: Measure, roles: Roles, photos: EnrolledPhotos) -> Searched:
    """The searches with the photos as they are."""
    faces = photos.faces
    return _search(measure, roles, (faces, faces), (UNCHANGED, "none"))


def search_stratum(
    measure: Measure,
    roles: Roles,
    photos: EnrolledPhotos,
    stratum: tuple[str, Change],
    tick: Tick,
) -> tuple[Searched, Searched]:
    """The searches with degraded probes, in the gallery as it is and in one degraded alike."""
    name, change = stratum
    changed = enrol_photos(
        measure.analyser,
        measure.folder.folder,
        roles.photos,
        measure.selection,
        tick,
        change=change,
    )
    return (
        _search(measure, roles, (photos.faces, changed.faces), (name, "probe")),
        _search(measure, roles, (changed.faces, changed.faces), (name, "both")),
    )


def _search(
    measure: Measure,
    roles: Roles,
    faces: tuple[FacesByName, FacesByName],
    stratum: tuple[str, str],
) -> Searched:
    """`faces`: those of the gallery's photos and those of the probes'."""
    enrolled, probes = faces
    number = {name: n for n, name in enumerate(roles.persons)}
    key = {image: n for n, image in enumerate(roles.photos)}
    enroll, identify = measure.policy.enroll_gate, measure.policy.identify_gate
    usable = partial(_usable, number=number, key=key)
    gallery, gallery_names, _ = usable(roles.enrolled, roles.persons, _passing(enrolled, enroll))
    probes = _passing(probes, identify)
    strangers, stranger_names, lost = usable(roles.strangers, roles.stranger_names, probes)
    mates, mate_names, missed = usable(roles.mates, roles.persons, probes)
    found = []
    for one in (strangers, mates):
        best = BestScores(one, measure.comparator)
        best.add(gallery)
        _refuse(best, measure, roles, faces)
        found.append(best)
    return Searched(
        *stratum,
        len(gallery_names),
        found[0],
        stranger_names,
        found[1],
        mate_names,
        (lost, missed),
        likeness=_likeness(gallery, measure.comparator),
    )


def _likeness(gallery: Faces, comparator: Comparator) -> float | None:
    """How alike the people of a gallery are, one face each; None for too few."""
    if not len(gallery.vectors):
        return None
    persons = np.arange(len(gallery.vectors), dtype=np.intp)
    return gallery_likeness(LabelledEmbeddings(gallery.vectors, persons, comparator))


def _refuse(
    best: BestScores, measure: Measure, roles: Roles, faces: tuple[FacesByName, FacesByName]
) -> None:
    """Take back what the service would reject (`app.decision.verdicts`): a best candidate where
    both faces look degraded."""

    def is_degraded(face: Face) -> bool:
        degradation = measure.comparator.degradation_of(_embedding(face))
        return DEGRADED in measure.limits.beyond(face.quality, degradation)

    enrolled, probes = faces
    theirs = {n: is_degraded(enrolled[i]) for n, i in enumerate(roles.enrolled) if i in enrolled}
    for n, key in enumerate(best.probes.keys.tolist()):
        mine = is_degraded(probes[roles.photos[key]])
        own_first = best.own[n] >= best.other[n]
        person = int(best.probes.persons[n] if own_first else best.other_person[n])
        if mine and theirs.get(person, False):
            best.own[n] = LOWEST
            if not own_first:
                best.other[n] = LOWEST


def _passing(faces: FacesByName, gate: QualityGate) -> FacesByName:
    """Those that the collection's policy would take."""

    def passes(face: Face) -> bool:
        try:
            check_quality(face, gate)
        except FaceError:
            return False
        return True

    return {name: face for name, face in faces.items() if passes(face)}


def _usable(
    images: Sequence[str],
    names: Sequence[str],
    faces: FacesByName,
    number: Mapping[str, int],
    key: Mapping[str, int],
) -> tuple[Faces, list[str], list[str]]:
    """The faces that there are, whose they are, and the names of those without one. A stranger's
    number is one of nobody."""
    kept = [(i, n) for i, n in zip(images, names, strict=True) if i in faces]
    lost = [n for i, n in zip(images, names, strict=True) if i not in faces]
    vectors = [_embedding(faces[image]) for image, _ in kept]
    width = len(vectors[0]) if vectors else 1
    return (
        Faces(
            np.array(vectors, np.float32).reshape(-1, width),
            np.array([number.get(name, -2) for _, name in kept], np.int64),
            np.array([key[image] for image, _ in kept], np.int64),
        ),
        [name for _, name in kept],
        lost,
    )


def _embedding(face: Face) -> FloatArray:
    assert face.embedding is not None, "the pipeline was asked to embed"
    return face.embedding


def digest_of(people: LabelledPeople, photos: EnrolledPhotos) -> str:
    """SHA-256 of the photos by person, whatever they and the people are called."""
    by_person: dict[str, list[str]] = {}
    for image, person in zip(people.images, people.persons, strict=True):
        by_person.setdefault(person, []).append(photos.digests.get(image, "unreadable"))
    parts = sorted(" ".join(sorted(digests)) for digests in by_person.values())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
