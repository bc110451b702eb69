"""Measured error rates against the promised ones, in strata of degraded photos.

    python benchmarks/domain.py CACHE --groups ../shared/data/lfw/groups.csv \
        --label-noise benchmarks/lfw_label_noise.csv

CACHE is what `degraded_faces.py` wrote. Calibrations and the direction are made of the development
half of the people; every figure is of the other half. Before: cosines; after: the score. Prints
Markdown tables.
"""

from itertools import combinations

import numpy as np
from domain_data import (
    TITLES,
    Cache,
    Faces,
    arguments,
    head,
    per_10_000,
    read_cache,
    refused,
    row,
    threshold_of,
)

from app.decision.calibration import Calibration
from app.decision.comparisons import compare_mated, rates_at
from app.decision.rates import Rate, clopper_pearson, effective_trials


def main() -> None:
    cache = read_cache(arguments(__doc__))
    print(f"{len(cache.sharp.vectors)} photos of {len(set(cache.sharp.persons))} people held out\n")
    _strata(cache)
    _press(cache)


def _strata(cache: Cache) -> None:
    print("FMR at the threshold for 1e-4, per 10,000 (95 % interval)\n")
    head("stratum", "faces", "both: cosine", "score", "refused, %", "decided",
         "one side: cosine", "score", "median x·d", "a(x) = 1, %")  # fmt: skip
    sharp = cache.sharp.first()
    for kind, faces in {"sharp": cache.sharp, **cache.kinds}.items():
        some = faces.first()
        both = [_both(some, one) for one in (cache.before, cache.after)]
        one_side = [_one(some, sharp, one) for one in (cache.before, cache.after)]
        share, decided = _decided(some, cache.after)
        degradation = cache.after.comparator.degradation(some.vectors)
        covering = cache.after.comparator.coverings(some.vectors)
        assert degradation is not None, "the calibration has a domain"
        assert covering is not None, "covered faces stand out"
        row(TITLES[kind], str(len(some.vectors)), *map(per_10_000, both), f"{100 * share:.0f}",
            f"{1e4 * decided:.1f}", *map(per_10_000, one_side), f"{np.median(degradation):.2f}",
            f"{100 * (covering == 1).mean():.0f}")  # fmt: skip
    print("\nTwo different degradations, the worst pairs after: FMR before and after\n")
    found = []
    for a, b in combinations(cache.kinds, 2):
        one, other = cache.kinds[a].first(), cache.kinds[b].first()
        rates = [_one(one, other, made).value for made in (cache.after, cache.before)]
        found.append((*rates, TITLES[a], TITLES[b]))
    for after, before, a, b in sorted(found, reverse=True)[:8]:
        row(a, b, f"{before:.1e}", f"{after:.1e}")
    print()


def _decided(faces: Faces, calibration: Calibration) -> tuple[float, float]:
    """The share of comparisons refused, and of all those that match and are not refused."""
    pairs = np.triu_indices(len(faces.vectors), 1)
    out = refused(faces, faces, calibration)[pairs]
    scores = calibration.comparator.scores(faces.vectors, faces.vectors)[pairs]
    matched = scores >= threshold_of(calibration)
    return float(out.mean()), float((matched & ~out).mean())


def _both(faces: Faces, calibration: Calibration) -> Rate:
    at = np.array([threshold_of(calibration)])
    curve = rates_at(faces.labelled(calibration.comparator), at)
    return Rate(float(curve.rates[0]), float(curve.low[0]), float(curve.high[0]))


def _one(faces: Faces, others: Faces, calibration: Calibration) -> Rate:
    """Faces against others' faces; the interval is that of comparisons that share people."""
    scores = calibration.comparator.scores(faces.vectors, others.vectors)
    different = faces.persons[:, np.newaxis] != others.persons
    matched = (scores >= threshold_of(calibration)) & different
    pairs = float(different.sum())
    value = float(matched.sum()) / pairs
    rest = (matched - value) * different
    _, person = np.unique(np.concatenate([faces.persons, others.persons]), return_inverse=True)
    sums = np.bincount(person, np.concatenate([rest.sum(axis=1), rest.sum(axis=0)]))
    # Of two comparisons those vary together that have a person in common (dyadic clustering).
    variance = max(0.0, float((sums**2).sum() - (rest**2).sum())) / pairs**2
    trials = np.minimum(effective_trials(np.array([value]), np.array([variance])), pairs)
    low, high = clopper_pearson(value * trials, trials)
    return Rate(value, float(low[0]), float(high[0]))


def _press(cache: Cache) -> None:
    print("Press photos: what the score and a bound on both sides' degradation cost\n")
    for name, one in (("before", cache.before), ("after", cache.after)):
        missed = one.fnmr_at(threshold_of(one))
        assert missed is not None, "people have several photos"
        held_out = compare_mated(
            cache.sharp.labelled(one.comparator), np.array([threshold_of(one), 1.0])
        )
        assert held_out is not None, "people have several photos"
        print(
            f"- {name}: threshold {threshold_of(one):.4f}, FNMR of the development half "
            f"{missed.value:.4f}, of the other {held_out[0].rates[0]:.4f}"
        )
    assert cache.after.domain is not None, "the score has a domain"
    print(f"- limits {cache.after.domain.limits}, likeness {cache.after.domain.likeness}")
    same = cache.sharp.persons[:, np.newaxis] == cache.sharp.persons
    out = refused(cache.sharp, cache.sharp, cache.after)
    upper = np.triu(np.ones_like(same), 1)
    for name, mask in (("mated", same), ("non-mated", ~same)):
        print(f"- {100 * out[upper & mask].mean():.3f} % of the {name} comparisons refused")


if __name__ == "__main__":
    main()
