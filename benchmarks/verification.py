"""False match rates of verifications by stratum and group: without a lift, with that of degraded
faces, which needs no groups, and with that of typical faces as well.

    python benchmarks/verification.py CACHE --groups ../shared/data/lfw/groups.csv \
        --label-noise benchmarks/lfw_label_noise.csv

CACHE is what `degraded_faces.py` wrote. Everything is fitted to the development half of the people,
every figure is of the other half, at the threshold for an FMR of 1e-4, or for those of FMRS. Prints
Markdown tables.
"""

from dataclasses import dataclass

import numpy as np
from domain_data import (
    FMR,
    TITLES,
    Cache,
    Faces,
    arguments,
    head,
    per_10_000,
    read_cache,
    refused,
    row,
)
from numpy.typing import NDArray

from app.decision.comparisons import compare_mated, rates_at
from app.decision.pair_lifts import PairLifts
from app.decision.rates import Rate, clopper_pearson, dyadic_variance, effective_trials
from app.decision.thresholds import ONE_COMPARISON
from app.index.comparator import Comparator
from app.lab.evaluation.labels import read_attributes

FMRS = (1e-3, 1e-4, 1e-5)


@dataclass(frozen=True, slots=True)
class Rule:
    """A comparison and whether pairs outside the limits are refused."""

    name: str
    comparator: Comparator
    refuses: bool


def main() -> None:
    options = arguments(__doc__)
    cache = read_cache(options)
    sex = read_attributes(options.groups)["sex"]
    domain = cache.after.domain
    assert domain is not None, "the score has a domain"
    lifts = domain.verification
    known = [None if one is None else one.lift for one in (lifts.degraded, lifts.typical)]
    print(f"threshold {cache.after.threshold_at(FMR, ONE_COMPARISON):.4f}, lifts {known}")
    strata = {"as it is": cache.sharp}
    strata |= {f"as it is, {group}": _of_group(cache.sharp, sex, group)
               for group in sorted(set(sex.values()) - {""})}  # fmt: skip
    kinds = {TITLES[kind]: faces for kind, faces in cache.kinds.items()}
    _one_photo_each(cache, lifts, strata | kinds)
    _all_photos(cache, lifts, strata)


def _one_photo_each(cache: Cache, lifts: PairLifts, strata: dict[str, Faces]) -> None:
    threshold = cache.after.threshold_at(FMR, ONE_COMPARISON)
    score = cache.after.comparator
    of_degraded = PairLifts(degraded=lifts.degraded)
    rules = [
        Rule("score", score, refuses=False),
        Rule("score, refused", score, refuses=True),
        Rule("lift of degraded, refused", of_degraded.lifted(score), refuses=True),
        Rule("lifts, refused", lifts.lifted(score), refuses=True),
    ]
    print("FMR per 10,000 (95 % interval); FNMR in %, decided pairs; mated pairs refused, %\n")
    names = [rule.name for rule in rules]
    head("both sides", "people", *names, *(f"FNMR, {name}" for name in names[1:]), "refused")
    for name, faces in strata.items():
        one = faces.first()
        rates = [per_10_000(_fmr(one, cache, rule, threshold)) for rule in rules]
        missed = [_fnmr(faces, cache, rule, threshold) for rule in rules[1:]]
        row(name, str(len(one.persons)), *rates, *(f"{100 * value:.2f}" for value, _ in missed),
            f"{100 * missed[0][1]:.2f}")  # fmt: skip


def _all_photos(cache: Cache, lifts: PairLifts, strata: dict[str, Faces]) -> None:
    score = cache.after.comparator
    comparators = {
        "score": score,
        "lift of degraded": PairLifts(degraded=lifts.degraded).lifted(score),
        "lifts": lifts.lifted(score),
    }
    print("\nAll photos of each person, each pair of people counting once; nothing is refused\n")
    head("both sides", "promised FMR", *comparators, *(f"FNMR, {name}" for name in comparators))
    for fmr in FMRS:
        at = cache.after.threshold_at(fmr, ONE_COMPARISON)
        for name, faces in strata.items():
            matched = [per_10_000(_fmr_by_people(faces, one, at)) for one in comparators.values()]
            missed = [_fnmr_by_people(faces, one, at) for one in comparators.values()]
            row(name, f"{fmr:g}", *matched, *(f"{100 * value:.2f}" for value in missed))


def _of_group(faces: Faces, group_of: dict[str, str], group: str) -> Faces:
    return faces.of(np.array([group_of.get(str(one)) == group for one in faces.persons]))


def _fmr(faces: Faces, cache: Cache, rule: Rule, threshold: float) -> Rate:
    """Of one face per person; a rejected comparison is no match."""
    matched = rule.comparator.scores(faces.vectors, faces.vectors) >= threshold
    if rule.refuses:
        matched &= ~refused(faces, faces, cache.after)
    return _rate(np.triu(matched, 1))


def _rate(matched: NDArray[np.bool_]) -> Rate:
    """The mean over the pairs above the diagonal (n, n), which share people."""
    people = len(matched)
    pairs = people * (people - 1) / 2
    hits = float(matched.sum())
    rate = np.array([hits / pairs])
    sums = (matched.sum(axis=0) + matched.sum(axis=1)).astype(np.float64)[:, np.newaxis]
    variance = dyadic_variance(rate, sums, np.full(people, people - 1.0), np.array([hits]), pairs)
    trials = np.minimum(effective_trials(rate, variance), pairs)
    low, high = clopper_pearson(rate * trials, trials)
    return Rate(float(rate[0]), float(low[0]), float(high[0]))


def _fmr_by_people(faces: Faces, comparator: Comparator, threshold: float) -> Rate:
    curve = rates_at(faces.labelled(comparator), np.array([threshold]))
    return Rate(float(curve.rates[0]), float(curve.low[0]), float(curve.high[0]))


def _fnmr_by_people(faces: Faces, comparator: Comparator, threshold: float) -> float:
    found = compare_mated(faces.labelled(comparator), np.array([threshold, 1.0]))
    return float("nan") if found is None else float(found[0].rates[0])


def _fnmr(faces: Faces, cache: Cache, rule: Rule, threshold: float) -> tuple[float, float]:
    """Of the mated comparisons that are decided the share missed, each person counting once; and
    the share that is refused."""
    missed, out_of_domain = [], []
    _, first = np.unique(faces.persons, return_inverse=True)
    for person in np.flatnonzero(np.bincount(first) > 1):
        mine = faces.of(first == person)
        pairs = np.triu_indices(len(mine.persons), 1)
        out = refused(mine, mine, cache.after)[pairs]
        out_of_domain.append(float(out.mean()))
        scores = rule.comparator.scores(mine.vectors, mine.vectors)[pairs][~out]
        if len(scores):
            missed.append(float((scores < threshold).mean()))
    return float(np.mean(missed)) if missed else float("nan"), float(np.mean(out_of_domain))


if __name__ == "__main__":
    main()
