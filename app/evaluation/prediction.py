"""Does a calibration keep its promise? Predicted FPIR against searches on real faces."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np

from app.decision.calibration import Calibration
from app.decision.comparisons import Indices
from app.decision.fitting import MIN_PERSONS, Labelled, calibrate
from app.decision.rates import Rate, clopper_pearson
from app.errors import RateOutOfReach
from app.evaluation.figures import FpirPrediction
from app.evaluation.sample import FaceSample
from app.gallery.ports import GallerySize

SIZES = (100, 500, 1000, 2000)
TARGETS = (0.1, 0.03, 0.01)
TEMPLATES = (1, 2)
REPEATS = 50
HALVES = 5
MIN_PROBES = 200

Clock = Callable[[], datetime]


def check_predictions(
    sample: FaceSample,
    space: str,
    generator: np.random.Generator,
    clock: Clock = lambda: datetime.now(UTC),
) -> tuple[FpirPrediction, ...]:
    """Promises tried on the people they were made of, then on people held out.

    Held out: the people are halved HALVES times, one half calibrates and the other is searched.
    """
    if sample.data.person_count < 2 * MIN_PERSONS:
        return ()
    everyone = np.arange(sample.data.person_count)
    own = _calibrate(sample, everyone, space, clock)
    figures = _try(sample, [(own, everyone)], generator, held_out=False)
    halves = []
    for _ in range(HALVES):
        order = generator.permutation(everyone)
        one, other = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        halves += [(_calibrate(sample, one, space, clock), other)]
    return (*figures, *_try(sample, halves, generator, held_out=True))


def _calibrate(sample: FaceSample, persons: Indices, space: str, clock: Clock) -> Calibration:
    number = {int(person): i for i, person in enumerate(persons)}
    left_out = frozenset(
        (number[a], number[b]) for a, b in sample.left_out if a in number and b in number
    )
    labelled = Labelled(sample.data.of_persons(persons), "photos", "half", left_out)
    return calibrate(labelled, space, "float32", clock)


def _try(
    sample: FaceSample,
    parts: Sequence[tuple[Calibration, Indices]],
    generator: np.random.Generator,
    *,
    held_out: bool,
) -> list[FpirPrediction]:
    figures = []
    for templates in TEMPLATES:
        for size in SIZES:
            for target in TARGETS:
                gallery = GallerySize(size, size * templates)
                one = _promise(sample, parts, generator, gallery, target)
                if one is not None:
                    figures.append(FpirPrediction(size, templates, target, *one, held_out))
    return figures


def _promise(
    sample: FaceSample,
    parts: Sequence[tuple[Calibration, Indices]],
    generator: np.random.Generator,
    gallery: GallerySize,
    target: float,
) -> tuple[float, Rate] | None:
    """The mean threshold promised for a target, and the FPIR it had over all parts; None where
    there are too few people."""
    thresholds, rates, probes = [], [], 0
    for calibration, persons in parts:
        try:
            threshold = calibration.threshold_at(target, gallery)
        except RateOutOfReach:
            return None
        rate = simulate_fpir(sample, persons, gallery, threshold, generator)
        if rate is None:
            return None
        thresholds.append(threshold)
        rates.append(rate)
        # Halves overlap: between them there are no more people than there are.
        probes = max(probes, len(persons) * min(len(parts), 2))
    mean = float(np.mean(rates))
    low, high = clopper_pearson(np.array([mean * probes]), np.array([float(probes)]))
    return float(np.mean(thresholds)), Rate(mean, float(low[0]), float(high[0]))


def simulate_fpir(
    sample: FaceSample,
    persons: Indices,
    gallery: GallerySize,
    threshold: float,
    generator: np.random.Generator,
) -> float | None:
    """The share of searches for strangers that find somebody, over REPEATS random galleries.

    Of `persons` so many as `gallery` says are enrolled, with as many photos each, and the first
    photos of all others are searched for. None where there are too few people for that.
    """
    data, size = sample.data, gallery.persons
    templates = gallery.templates // size
    usable = np.setdiff1d(persons, list(sample.second_names()))
    able = usable[data.counts[usable] >= templates]
    if len(able) < size or len(usable) - size < MIN_PROBES:
        return None
    starts = np.searchsorted(data.persons, np.arange(data.person_count))
    enrolled_faces = starts[able][:, np.newaxis] + np.arange(templates)
    similarities = data.vectors[starts[usable]] @ data.vectors[enrolled_faces.ravel()].T
    matches = (similarities >= threshold).reshape(len(usable), len(able), templates).any(axis=2)
    place = np.searchsorted(usable, able)
    found = []
    for _ in range(REPEATS):
        chosen = generator.permutation(len(able))[:size]
        strangers = np.ones(len(usable), dtype=np.bool_)
        strangers[place[chosen]] = False
        found.append(float(matches[np.ix_(strangers, chosen)].any(axis=1).mean()))
    return float(np.mean(found))
