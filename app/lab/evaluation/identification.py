"""Open-set identification: known people are to be found, strangers are not; also at the threshold
that the service itself would take, and with other rules that make one score of several templates.

After NIST FRTE 1:N and ISO/IEC 19795-1: people with two photos or more are enrolled with their
first, their others are mated probes; people with one photo are strangers. FNIR counts mated
searches in which the right person is not first, or not at the threshold; FPIR counts strangers for
whom anyone reaches it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from app.decision.calibration import Calibration
from app.decision.comparisons import Indices, LabelledEmbeddings
from app.decision.domain import labelled_likeness
from app.decision.policy import CollectionPolicy
from app.decision.rates import Floats, Rate, effective_trials
from app.decision.thresholds import CalibrationChain, ThresholdRequest, identification_threshold
from app.index.comparator import COSINE
from app.index.likeness import LEAST_PERSONS
from app.index.port import GallerySize
from app.lab.evaluation.figures import (
    IdentificationFigures,
    IdentificationPoint,
    ScoreFigures,
    Series,
    SettingFigures,
)
from app.lab.evaluation.metrics import RULE_OF_THREE, binomial, can_tell, lowest_threshold
from app.lab.evaluation.sample import FaceSample
from app.types import FloatArray

SIZES = (100, 500, 1000, 2000)
TARGETS = (0.1, 0.03, 0.01, 0.003)
REPEATS = 20
DET_POINTS = 60
MIN_STRANGERS = 10


@dataclass(frozen=True, slots=True)
class Searches:
    """What searches found: for each mated probe the similarity of its person and whether they
    were first, and whose probe it is; for each stranger the highest similarity of anyone."""

    own: Floats
    first: NDArray[np.bool_]
    persons: Indices
    strangers: Floats


def identify(
    sample: FaceSample,
    generator: np.random.Generator,
    sizes: Sequence[int] = SIZES,
    targets: Sequence[float] = TARGETS,
) -> tuple[IdentificationFigures, ...]:
    """Figures at each gallery size that the sample can fill, and with everyone enrolled.

    Smaller galleries are drawn at random REPEATS times and their searches pooled. A target FPIR
    that the strangers are too few for is left out. Empty where there is nobody to enroll or no
    stranger.
    """
    enrolled, strangers = split(sample)
    if len(enrolled) < 2 or len(strangers) < MIN_STRANGERS:
        return ()
    figures = []
    for size in [*(n for n in sizes if n < len(enrolled)), len(enrolled)]:
        repeats = 1 if size == len(enrolled) else REPEATS
        found = [
            search(sample, np.sort(generator.permutation(enrolled)[:size]), strangers)
            for _ in range(repeats)
        ]
        figures.append(_figures(size, repeats, _pool(found), len(strangers), targets))
    return tuple(figures)


def split(sample: FaceSample) -> tuple[Indices, Indices]:
    """Persons to enroll and strangers; a second name of somebody is neither."""
    usable = np.ones(sample.data.person_count, dtype=np.bool_)
    usable[list(sample.second_names())] = False
    several = sample.data.counts > 1
    return np.flatnonzero(usable & several), np.flatnonzero(usable & ~several)


def search(sample: FaceSample, enrolled: Indices, strangers: Indices) -> Searches:
    """Search the first photos of `enrolled` for their other photos and for the strangers'."""
    data = sample.data
    starts = np.searchsorted(data.persons, np.arange(data.person_count))
    mated = np.isin(data.persons, enrolled)
    mated[starts[enrolled]] = False
    probes = np.flatnonzero(mated)
    similarities = data.similarities(probes, starts[enrolled])
    place = np.searchsorted(enrolled, data.persons[probes])
    own = similarities[np.arange(len(probes)), place].astype(np.float64)
    others = data.similarities(starts[strangers], starts[enrolled])
    highest = others.max(axis=1).astype(np.float64)
    return Searches(own, own >= similarities.max(axis=1), data.persons[probes], highest)


def _pool(found: Sequence[Searches]) -> Searches:
    return Searches(
        *(
            np.concatenate([getattr(one, name) for one in found])
            for name in ("own", "first", "persons", "strangers")
        )
    )


def _figures(
    size: int, repeats: int, found: Searches, strangers: int, targets: Sequence[float]
) -> IdentificationFigures:
    able = [target for target in targets if can_tell(target, strangers)]
    points = []
    for target in able:
        threshold = lowest_threshold(found.strangers, target)
        points.append(
            IdentificationPoint(target, threshold, *rates_of(found, threshold, strangers))
        )
    lowest = min(RULE_OF_THREE / strangers, 1.0)
    curve = np.unique(np.quantile(found.strangers, 1 - np.geomspace(lowest, 1, DET_POINTS)))
    return IdentificationFigures(
        persons=size,
        repeats=repeats,
        mated_probes=len(found.own),
        non_mated_probes=len(found.strangers),
        rank_one=by_person(found.first, found.persons),
        points=tuple(points),
        det=Series(
            tuple(float((found.strangers >= t).mean()) for t in curve),
            tuple(float((~found.first | (found.own < t)).mean()) for t in curve),
        ),
    )


def rates_of(found: Searches, threshold: float, strangers: int) -> tuple[Rate, Rate]:
    """FPIR and FNIR at a threshold; `strangers` different people were searched for."""
    missed = ~found.first | (found.own < threshold)
    wrong = float((found.strangers >= threshold).mean())
    return binomial(wrong, strangers), by_person(missed, found.persons)


def by_person(happened: NDArray[np.bool_], persons: Indices) -> Rate:
    """The share of searches, with an interval for which a person's searches are one cluster."""
    value = float(happened.mean())
    _, cluster, sizes = np.unique(persons, return_inverse=True, return_counts=True)
    residuals = np.bincount(cluster, happened - value)
    people = len(sizes)
    variance = people / max(people - 1, 1) * float((residuals**2).sum()) / len(persons) ** 2
    trials = effective_trials(np.array([value]), np.array([variance]))[0]
    return binomial(value, min(trials, float(people)))


def at_setting(
    sample: FaceSample,
    name: str,
    policy: CollectionPolicy,
    shipped: Calibration | None,
    constant: float,
) -> SettingFigures | None:
    """Everyone with two photos enrolled with the first, searched for by their other photos and by
    strangers, people with one photo. None where there are fewer than two to enroll or no stranger.

    `name` is that of the data, `shipped` is the pack's calibration, `constant` its
    threshold where there is none. Faces are compared as the service does it, however those of the
    sample are.
    """
    comparator = COSINE if shipped is None else shipped.comparator
    sample = replace(sample, data=replace(sample.data, comparator=comparator))
    enrolled, strangers = split(sample)
    if len(enrolled) < 2 or len(strangers) == 0:
        return None
    size = GallerySize(len(enrolled), len(enrolled))
    chain = CalibrationChain([] if shipped is None else [shipped], constant)
    likeness = gallery_likeness(sample.data.of_persons(enrolled))
    rule = identification_threshold(ThresholdRequest(), policy, chain, size, likeness=likeness)
    fpir, fnir = rates_of(search(sample, enrolled, strangers), rule.threshold, len(strangers))
    return SettingFigures(
        target_fpir=rule.target,
        threshold=rule.threshold,
        calibration_id=None if rule.calibration is None else rule.calibration.calibration_id,
        same_data=rule.calibration is not None and _made_of(rule.calibration, sample, name),
        persons=len(enrolled),
        strangers=len(strangers),
        fpir=fpir,
        fnir=fnir,
    )


def gallery_likeness(data: LabelledEmbeddings) -> float | None:
    """How similar the people of a gallery are, which may raise its threshold; None for too few."""
    return labelled_likeness(data) if data.person_count >= LEAST_PERSONS else None


def _made_of(calibration: Calibration, sample: FaceSample, name: str) -> bool:
    """Whether it was made of these faces; another build may have embedded them a little otherwise,
    so a folder of that name with as many people counts as well."""
    source = calibration.source
    if (source.name, source.persons) == (name, sample.data.person_count):
        return True
    digest = hashlib.sha256(sample.data.vectors.astype("<f4").tobytes()).hexdigest()
    return source.digest == digest


TEMPLATES = (2, 3, 5)
RULE_TARGETS = (0.01, 0.003)
RULE_REPEATS = 5
MIN_PERSONS = 50

# The comparison, probes (probes, d), templates (persons, templates, d), and their similarities
# (probes, persons, templates) -> scores (probes, persons).
Compare = Callable[[FloatArray, FloatArray], FloatArray]
FusionRule = Callable[[Compare, FloatArray, FloatArray, FloatArray], Floats]


def _maximum(
    _compare: Compare, _probes: FloatArray, _templates: FloatArray, similarities: FloatArray
) -> Floats:
    return np.asarray(similarities.max(axis=2), np.float64)


def _mean_of_two(
    _compare: Compare, _probes: FloatArray, _templates: FloatArray, similarities: FloatArray
) -> Floats:
    return np.asarray(np.sort(similarities, axis=2)[..., -2:].mean(axis=2), np.float64)


def _mean(
    _compare: Compare, _probes: FloatArray, _templates: FloatArray, similarities: FloatArray
) -> Floats:
    return np.asarray(similarities.mean(axis=2), np.float64)


def _centroid(
    compare: Compare, probes: FloatArray, templates: FloatArray, _similarities: FloatArray
) -> Floats:
    centres = templates.sum(axis=1)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return np.asarray(compare(probes, centres), np.float64)


RULES: Mapping[str, FusionRule] = {
    "max": _maximum,
    "mean_of_top_2": _mean_of_two,
    "mean": _mean,
    "centroid": _centroid,
}


def compare_rules(sample: FaceSample, generator: np.random.Generator) -> tuple[ScoreFigures, ...]:
    """Open-set identification with m templates per person, by each rule, over random choices.

    People with more than m photos are enrolled, one more photo of theirs is the mated probe;
    people with one photo are strangers. Thresholds are each rule's own, at the FPIR named, where
    there are strangers enough for it. Intervals are those of a single choice.
    """
    enrolled, strangers = split(sample)
    targets = [target for target in RULE_TARGETS if can_tell(target, len(strangers))]
    figures: list[ScoreFigures] = []
    for count in TEMPLATES:
        able = enrolled[sample.data.counts[enrolled] > count]
        if len(able) < MIN_PERSONS or len(strangers) < MIN_PERSONS:
            continue
        runs = [
            _run(sample, (able, strangers), count, targets, generator) for _ in range(RULE_REPEATS)
        ]
        for rule in RULES:
            means = np.mean([run[rule] for run in runs], axis=0)
            first, *missed = (binomial(float(mean), len(able)) for mean in means)
            fnir = {f"{target:g}": rate for target, rate in zip(targets, missed, strict=True)}
            figures.append(ScoreFigures(rule, count, len(able), first, fnir))
    return tuple(figures)


def _run(
    sample: FaceSample,
    persons: tuple[Indices, Indices],
    count: int,
    targets: Sequence[float],
    generator: np.random.Generator,
) -> dict[str, list[float]]:
    """Rank-1 rate and FNIR at each target, by rule, for one random choice of templates of the
    persons to enroll; the others are strangers."""
    data, (able, strangers) = sample.data, persons
    chosen = [generator.permutation(np.flatnonzero(data.persons == p))[: count + 1] for p in able]
    picks = np.array(chosen)
    starts = np.searchsorted(data.persons, strangers)
    templates = data.vectors[picks[:, :count]]
    probes = np.concatenate([data.vectors[picks[:, count]], data.vectors[starts]])
    flat = templates.reshape(-1, templates.shape[2])
    similarities = data.comparator.scores(probes, flat).reshape(len(probes), len(able), count)
    found = {}
    for name, rule in RULES.items():
        scores = rule(data.comparator.scores, probes, templates, similarities)
        mated, others = scores[: len(able)], scores[len(able) :].max(axis=1)
        own = np.diagonal(mated)
        first = own >= mated.max(axis=1)
        thresholds = [lowest_threshold(others, target) for target in targets]
        fnir = [float(np.mean(~first | (own < threshold))) for threshold in thresholds]
        found[name] = [float(first.mean()), *fnir]
    return found
