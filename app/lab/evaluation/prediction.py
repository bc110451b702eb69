"""Whether the promised FPIR of a calibration is kept: compared with simulated searches on real
faces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from app.decision.calibration import Calibration
from app.decision.comparisons import Indices
from app.decision.fitting import MIN_PERSONS, Labelled, calibrate
from app.decision.rates import Rate
from app.errors import RateOutOfReach
from app.index.port import GallerySize
from app.lab.evaluation.figures import FpirPrediction
from app.lab.evaluation.metrics import binomial, can_tell
from app.lab.evaluation.sample import FaceSample

SIZES = (100, 500, 1000, 2000)
TARGETS = (0.1, 0.03, 0.01)
TEMPLATES = (1, 2)
REPEATS = 50
HALVES = 5
MIN_PROBES = 200

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class _Part:
    """A calibration, the people it was made of, and those who are searched."""

    calibration: Calibration
    made_of: Indices
    searched: Indices


def check_predictions(
    sample: FaceSample,
    own: Calibration | None,
    generator: np.random.Generator,
    clock: Clock = lambda: datetime.now(UTC),
) -> tuple[FpirPrediction, ...]:
    """Promises of the sample's `own` calibration tried on its people, then on people held out.

    Held out: the people are halved HALVES times, one half calibrates and the other is searched.
    """
    if own is None or sample.data.person_count < 2 * MIN_PERSONS:
        return ()
    everyone, space = np.arange(sample.data.person_count), own.embedding_space
    figures = _try(sample, [_Part(own, everyone, everyone)], generator, held_out=False)
    halves = []
    for _ in range(HALVES):
        order = generator.permutation(everyone)
        one, other = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        halves.append(_Part(_calibrate(sample, one, space, clock), one, other))
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
    parts: Sequence[_Part],
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
                    threshold, simulated, maximum = one
                    figures.append(
                        FpirPrediction(
                            size, templates, target, threshold, simulated, held_out, maximum
                        )
                    )
    return figures


def _promise(
    sample: FaceSample,
    parts: Sequence[_Part],
    generator: np.random.Generator,
    gallery: GallerySize,
    target: float,
) -> tuple[float, Rate, float | None] | None:
    """The mean threshold promised for a target, the FPIR it had over all parts, and the FPIR that
    the maxima of the calibrating people foretold; None where there are too few people."""
    thresholds, rates, maxima, probes = [], [], [], 0
    for part in parts:
        try:
            threshold = part.calibration.threshold_at(target, gallery)
        except RateOutOfReach:
            return None
        rate = simulate_fpir(sample, part.searched, gallery, threshold, generator)
        if rate is None:
            return None
        thresholds.append(threshold)
        rates.append(rate)
        maxima.append(fpir_by_maximum(sample, part.made_of, gallery, threshold))
        # Halves overlap: between them there are no more people than there are.
        probes = max(probes, len(part.searched) * min(len(parts), 2))
    if not can_tell(target, probes):
        return None
    known = [value for value in maxima if value is not None]
    maximum = float(np.mean(known)) if len(known) == len(parts) else None
    return float(np.mean(thresholds)), binomial(float(np.mean(rates)), probes), maximum


def fpir_by_maximum(
    sample: FaceSample, persons: Indices, gallery: GallerySize, threshold: float
) -> float | None:
    """FPIR from the distribution of the highest of N: the chance that of N people drawn from the
    others at least one reaches the threshold, exactly (hypergeometric), averaged over probes.

    Assumes nothing of how similarities are distributed, and so reaches no further than the
    sample: None where it has fewer people than the gallery.
    """
    matches, place = _matches(sample, persons, gallery, threshold)
    matches[place, np.arange(len(place))] = False
    others = np.full(len(matches), len(place))
    others[place] -= 1
    size, alike = gallery.persons, matches.sum(axis=1)
    if others.min() < size:
        return None
    with np.errstate(invalid="ignore"):
        nobody = np.exp(
            gammaln(others - alike + 1)
            - gammaln(np.maximum(others - alike - size + 1, 1))
            - gammaln(others + 1)
            + gammaln(others - size + 1)
        )
    return float(np.mean(np.where(alike > others - size, 1.0, 1.0 - nobody)))


def _matches(
    sample: FaceSample, persons: Indices, gallery: GallerySize, threshold: float
) -> tuple[NDArray[np.bool_], Indices]:
    """Whether each of `persons` by their first photo (rows) matches each who has templates enough
    (columns), by any of them; and the rows of the columns' people."""
    data, templates = sample.data, gallery.templates // gallery.persons
    usable = np.setdiff1d(persons, list(sample.second_names()))
    able = usable[data.counts[usable] >= templates]
    starts = np.searchsorted(data.persons, np.arange(data.person_count))
    enrolled = (starts[able][:, np.newaxis] + np.arange(templates)).ravel()
    similarities = data.similarities(starts[usable], enrolled)
    reached = (similarities >= threshold).reshape(len(usable), len(able), templates)
    matches = np.asarray(reached.any(axis=2))
    return matches, np.searchsorted(usable, able)


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
    matches, place = _matches(sample, persons, gallery, threshold)
    size = gallery.persons
    if len(place) < size or len(matches) - size < MIN_PROBES:
        return None
    found = []
    for _ in range(REPEATS):
        chosen = generator.permutation(len(place))[:size]
        strangers = np.ones(len(matches), dtype=np.bool_)
        strangers[place[chosen]] = False
        found.append(float(matches[np.ix_(strangers, chosen)].any(axis=1).mean()))
    return float(np.mean(found))
