"""Labelled faces ready to be compared, and the photos that gave none."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.decision.comparisons import LabelledEmbeddings, PersonPair
from app.index.comparator import COSINE, Comparator
from app.lab.evaluation.figures import PhotoProblem
from app.lab.evaluation.labels import EvaluationError, LabelledPeople, LabelNoise
from app.lab.evaluation.protocol import EnrolledPhotos
from app.types import FloatArray, Quality

MIN_PEOPLE = 3


@dataclass(frozen=True, slots=True)
class FaceSample:
    """One face a photo, by person: `images` and `qualities` are those of the faces, `names` those
    of the numbered persons. `left_out` pairs of persons are not compared."""

    data: LabelledEmbeddings
    images: tuple[str, ...]
    names: tuple[str, ...]
    qualities: tuple[Quality, ...]
    left_out: frozenset[PersonPair]

    def second_names(self) -> frozenset[int]:
        """Persons to keep out of a search in which their other name may be enrolled."""
        return frozenset(b for _, b in self.left_out)


def build_sample(
    people: LabelledPeople,
    photos: EnrolledPhotos,
    noise: LabelNoise,
    comparator: Comparator = COSINE,
) -> FaceSample:
    """The enrolled faces of a folder of people. Raises EvaluationError for too few of them."""
    usable = [
        (person, image)
        for image, person in zip(people.images, people.persons, strict=True)
        if image in photos.faces and image not in noise.images
    ]
    names, persons = np.unique([person for person, _ in usable], return_inverse=True)
    if len(names) < MIN_PEOPLE:
        raise EvaluationError(
            f"{people.folder} has photos with a usable face of {len(names)} people; at least "
            f"{MIN_PEOPLE} are needed to compare people. Add more folders of people."
        )
    order = np.argsort(persons, kind="stable")
    images = tuple(usable[i][1] for i in order)
    vectors = np.stack([_embedding(photos, image) for image in images])
    number = {str(name): i for i, name in enumerate(names)}
    pairs = [(number.get(a), number.get(b)) for a, b in noise.same_people]
    return FaceSample(
        LabelledEmbeddings(vectors, persons[order].astype(np.intp), comparator),
        images,
        tuple(map(str, names)),
        tuple(photos.faces[image].quality for image in images),
        frozenset((a, b) for a, b in pairs if a is not None and b is not None),
    )


def _embedding(photos: EnrolledPhotos, image: str) -> FloatArray:
    embedding = photos.faces[image].embedding
    assert embedding is not None, "the pipeline was asked to embed"
    return embedding


def find_problems(people: LabelledPeople, photos: EnrolledPhotos) -> tuple[PhotoProblem, ...]:
    """What a look at the data alone shows: photos that failed, one photo under two people or
    twice under one, and people of whom there is one photo only."""
    return (*photos.failures, *_repeated(people, photos), *_single(people))


def _repeated(people: LabelledPeople, photos: EnrolledPhotos) -> Iterator[PhotoProblem]:
    seen: dict[str, tuple[str, str]] = {}
    for image, person in zip(people.images, people.persons, strict=True):
        digest = photos.digests.get(image)
        if digest is None:
            continue
        if digest not in seen:
            seen[digest] = (person, image)
            continue
        other, first = seen[digest]
        code = "duplicate_photo" if other == person else "same_photo_of_two_people"
        yield PhotoProblem(image, code, f"The same file as {first}.")


def _single(people: LabelledPeople) -> Iterator[PhotoProblem]:
    counts = Counter(people.persons)
    for image, person in zip(people.images, people.persons, strict=True):
        if counts[person] == 1:
            yield PhotoProblem(
                image, "one_photo", "A person with one photo is compared as a stranger."
            )


def quality_column(qualities: Sequence[Quality], measure: str) -> FloatArray:
    """One measure of many faces (n,); 0 where it was not taken."""
    return np.array([getattr(quality, measure) or 0.0 for quality in qualities], np.float32)
