"""Rules that make one score of several templates, compared in open-set identification."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from app.decision.comparisons import Indices
from app.decision.rates import Floats
from app.lab.evaluation.figures import ScoreFigures
from app.lab.evaluation.identification import split
from app.lab.evaluation.metrics import binomial, can_tell
from app.lab.evaluation.sample import FaceSample
from app.types import FloatArray

TEMPLATES = (2, 3, 5)
TARGETS = (0.01, 0.003)
REPEATS = 5
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
    """Open-set identification with m templates a person, by each rule, over random choices.

    People with more than m photos are enrolled, one more photo of theirs is the mated probe;
    people with one photo are strangers. Thresholds are each rule's own, at the FPIR named, where
    there are strangers enough for it. Intervals are those of a single choice.
    """
    enrolled, strangers = split(sample)
    targets = [target for target in TARGETS if can_tell(target, len(strangers))]
    figures: list[ScoreFigures] = []
    for count in TEMPLATES:
        able = enrolled[sample.data.counts[enrolled] > count]
        if len(able) < MIN_PERSONS or len(strangers) < MIN_PERSONS:
            continue
        runs = [_run(sample, (able, strangers), count, targets, generator) for _ in range(REPEATS)]
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
        thresholds = np.quantile(others, 1 - np.array(targets), method="higher")
        fnir = [float(np.mean(~first | (own <= t))) for t in thresholds]
        found[name] = [float(first.mean()), *fnir]
    return found
