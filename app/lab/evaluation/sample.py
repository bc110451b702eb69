"""Labelled faces ready to be compared, and every photo of them against every other: thresholds,
curves, the worst pairs, and whether fewer mates would be missed if the worst photos had been
refused ("error versus discard").

Grother & Tabassi, "Performance of biometric quality measures", IEEE PAMI 2007. A measure that does
not predict errors leaves the FNMR as it is, however much is discarded."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from app.decision.calibration import Calibration
from app.decision.comparisons import (
    BINS_PER_UNIT,
    ErrorCurve,
    Indices,
    LabelledEmbeddings,
    NonMated,
    NonMatedPairs,
    PersonPair,
    compare_mated,
    compare_non_mated,
)
from app.decision.rates import Floats
from app.decision.thresholds import ONE_COMPARISON
from app.errors import RateOutOfReach
from app.index.comparator import COSINE, Comparator
from app.lab.evaluation.figures import (
    ComparedPair,
    ComparisonFigures,
    ComparisonPoint,
    DiscardFigures,
    Histogram,
    PhotoProblem,
    Series,
)
from app.lab.evaluation.labels import EvaluationError, LabelledPeople, LabelNoise
from app.lab.evaluation.metrics import RULE_OF_THIRTY, EqualErrorRate
from app.lab.evaluation.protocol import EnrolledPhotos
from app.types import FloatArray, Quality

MIN_PEOPLE = 3


@dataclass(frozen=True, slots=True)
class FaceSample:
    """One face per photo, by person: `images` and `qualities` are those of the faces, `names` those
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


TARGETS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
WORST = 24
NEAREST = 2000
HISTOGRAM_STEP = 0.02


def compare_all(sample: FaceSample, calibration: Calibration | None) -> ComparisonFigures | None:
    """All figures of one comparison; None where nobody has two photos.

    `calibration` is the one made of this very sample: it knows the intervals and the tail.
    """
    data = sample.data
    non_mated = compare_non_mated(data, NEAREST, sample.left_out)
    grid = non_mated.curve.similarities
    mated = compare_mated(data, grid)
    if mated is None:
        return None
    values, faces_a, faces_b = _mated(sample)
    counts = data.counts.astype(np.int64)
    curve, people = mated
    return ComparisonFigures(
        person_pairs=non_mated.pairs,
        comparisons=int(counts.sum() ** 2 - (counts**2).sum()) // 2,
        mated_people=people,
        mated_comparisons=len(values),
        eer=equal_error_rate(non_mated.curve, curve, people),
        points=() if calibration is None else _points(calibration),
        roc=_series(non_mated.curve.rates, 1.0 - curve.rates),
        det=_series(non_mated.curve.rates, curve.rates),
        histogram=_histogram(sample, non_mated, values, faces_a),
        worst_mated=_pairs(sample, values, faces_a, faces_b),
        worst_non_mated=_worst_non_mated(sample, non_mated.top),
    )


def equal_error_rate(fmr: ErrorCurve, fnmr: ErrorCurve, people: float) -> EqualErrorRate:
    """Where two curves over the same similarities cross, between the rows interpolated; `people`
    have mated comparisons."""
    gap = fmr.rates - fnmr.rates
    after = int(np.argmax(gap <= 0)) if (gap <= 0).any() else len(gap) - 1
    before = max(after - 1, 0)
    span = gap[before] - gap[after]
    share = float(np.clip(gap[before] / span, 0, 1)) if span else 0.0
    rate, threshold = (
        float(column[before] + share * (column[after] - column[before]))
        for column in (fnmr.rates, fmr.similarities)
    )
    return EqualErrorRate(rate, threshold, people)


def _points(calibration: Calibration) -> tuple[ComparisonPoint, ...]:
    points = []
    for target in TARGETS:
        try:
            threshold = calibration.threshold_at(target, ONE_COMPARISON)
        except RateOutOfReach:
            continue
        fmr = calibration.fmr_at(threshold)
        if fmr is not None:
            points.append(ComparisonPoint(target, threshold, fmr, calibration.fnmr_at(threshold)))
    return tuple(points)


def _series(x: Floats, y: Floats) -> Series:
    return Series(tuple(map(float, x)), tuple(map(float, y)))


def _mated(sample: FaceSample) -> tuple[Floats, Indices, Indices]:
    """All mated similarities and the faces they compare."""
    data, parts = sample.data, []
    for person in np.flatnonzero(data.counts > 1):
        faces = np.flatnonzero(data.persons == person)
        i, j = np.triu_indices(len(faces), 1)
        parts.append((data.mated(faces).astype(np.float64), faces[i], faces[j]))
    values, faces_a, faces_b = zip(*parts, strict=True)
    return np.concatenate(values), np.concatenate(faces_a), np.concatenate(faces_b)


def _histogram(sample: FaceSample, non_mated: NonMated, mated: Floats, faces: Indices) -> Histogram:
    """Shares by similarity, people weighing alike on both sides."""
    steps = round(2 / HISTOGRAM_STEP)
    edges = np.linspace(-1, 1, steps + 1)
    centres = (np.arange(len(non_mated.histogram)) + 0.5) / BINS_PER_UNIT - 1
    strangers, _ = np.histogram(np.clip(centres, -1, 1), edges, weights=non_mated.histogram)
    counts = sample.data.counts[sample.data.persons[faces]]
    own, _ = np.histogram(np.clip(mated, -1, 1), edges, weights=2.0 / (counts * (counts - 1)))
    return Histogram(
        tuple(map(float, edges)),
        tuple(map(float, own / own.sum())),
        tuple(map(float, strangers / strangers.sum())),
    )


def _pairs(
    sample: FaceSample, values: Floats, faces_a: Indices, faces_b: Indices
) -> tuple[ComparedPair, ...]:
    order = np.argsort(values, kind="stable")[:WORST]
    return tuple(_pair(sample, int(faces_a[i]), int(faces_b[i]), float(values[i])) for i in order)


def _worst_non_mated(sample: FaceSample, top: NonMatedPairs) -> tuple[ComparedPair, ...]:
    """The most alike of each pair of people."""
    key = top.persons_a * sample.data.person_count + top.persons_b
    _, first = np.unique(key, return_index=True)
    best = top.take(np.sort(first)[:WORST])
    return tuple(
        _pair(sample, int(a), int(b), float(s))
        for a, b, s in zip(best.faces_a, best.faces_b, best.similarities, strict=True)
    )


def _pair(sample: FaceSample, a: int, b: int, similarity: float) -> ComparedPair:
    persons = sample.data.persons
    return ComparedPair(
        sample.images[a],
        sample.images[b],
        sample.names[persons[a]],
        sample.names[persons[b]],
        similarity,
    )


DISCARDED = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
# What is good, as a number that rises with it.
MEASURES = ("face_size_px", "yaw", "pitch", "roll", "sharpness", "brightness", "detector_score",
            "embedding_norm")  # fmt: skip
SIGNED = {"yaw", "pitch", "roll"}


def error_versus_discard(sample: FaceSample, threshold: float) -> tuple[DiscardFigures, ...]:
    """FNMR at a fixed threshold without the comparisons whose worse photo is worst.

    Empty where fewer than 30 comparisons are missed: that is too few to find their causes.
    """
    data, rows = sample.data, []
    for person in np.flatnonzero(data.counts > 1):
        faces = np.flatnonzero(data.persons == person)
        i, j = np.triu_indices(len(faces), 1)
        values = data.mated(faces)
        rows.append((values < threshold, faces[i], faces[j], np.full(len(values), 1 / len(values))))
    if not rows:
        return ()
    missed, a, b, weights = (np.concatenate(column) for column in zip(*rows, strict=True))
    if np.count_nonzero(missed) < RULE_OF_THIRTY:
        return ()
    figures = []
    for measure in MEASURES:
        good = goodness(sample, measure)
        fnmr = _curve(missed, weights, np.minimum(good[a], good[b]))
        base = fnmr[0]
        gain = float(np.mean(1 - np.array(fnmr[1:]) / base)) if base else 0.0
        figures.append(DiscardFigures(measure, threshold, DISCARDED, fnmr, gain))
    return tuple(figures)


def goodness(sample: FaceSample, measure: str) -> Floats:
    """A quality measure turned so that more is better: angles by how frontal, brightness by how
    near the sample's middle."""
    values = quality_column(sample.qualities, measure).astype(np.float64)
    if measure in SIGNED:
        return -np.abs(values)
    if measure == "brightness":
        return -np.abs(values - np.median(values))
    return values


def _curve(missed: Floats, weights: Floats, good: Floats) -> tuple[float, ...]:
    order = np.argsort(-good, kind="stable")
    total = np.cumsum(weights[order])
    errors = np.cumsum((missed * weights)[order])
    kept = [int(np.searchsorted(total, (1 - share) * total[-1] - 1e-9)) for share in DISCARDED]
    return tuple(float(errors[k] / total[k]) for k in kept)
