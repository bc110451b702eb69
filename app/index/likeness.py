"""How similar the people of a gallery are: a high quantile of the scores of different people.

It is a function of the gallery's templates alone, so that every process and every engine finds the
same: the PERSONS people whose keys have the smallest digests are compared, by the template of each
with the smallest key. Ids that are probably of one person count as one: a few of them would be the
most similar pairs of a gallery, and raise its threshold for everybody.
"""

import numpy as np
from numpy.typing import NDArray

from app.index.comparator import Comparator
from app.types import FloatArray

QUANTILE = 0.99
# Of fewer people a single look-alike would decide the quantile: it is computed from the mean and
# the standard deviation then, as of a normal distribution (docs/benchmarks/accuracy.md).
FEW_PERSONS = 40
NORMAL_QUANTILE = 2.326
# Among few ids those of one person may be many of the pairs, whose quantiles they raise then: so
# lower scores count as one person (the FMR there is 1e-6), and the rule of SPREADS is repeated.
SAME_PERSON_OF_FEW = 0.65
# And of fewer than these, everything.
LEAST_PERSONS = 10
# Two ids with a score above this count as one person,
SAME_PERSON = 0.9
# and so do two whose score is so many times as far above the median of all pairs as the 90th
# percentile is. Chosen on the development half of LFW's people (docs/benchmarks/accuracy.md): of
# 1,323 different people the most similar two have 3.4, so that a few count as one; of the mated
# pairs nine in ten have more than 3.1.
SPREADS = 3.0
PERSONS = 512
# A filter's people are compared again in each search: 8 ms for 512, 1 to 3 ms for so many.
FILTERED_PERSONS = 256
# Some of a filter's people may have no template: of more people than this, those with the smallest
# digests are examined.
FILTERED_CHOICE = 4 * FILTERED_PERSONS

Digests = NDArray[np.uint64]


def likeness_of(vectors: FloatArray, comparator: Comparator) -> float | None:
    """The likeness of people given by one template each (n, d), in the order of their digests; None
    for too few different people."""
    if len(vectors) < LEAST_PERSONS:
        return None
    few = len(vectors) < FEW_PERSONS
    scores = _of_different(
        comparator.scores(vectors, vectors), SAME_PERSON_OF_FEW if few else SAME_PERSON
    )
    while len(scores) >= LEAST_PERSONS:
        median, high = np.quantile(_pairs(scores), (0.5, 0.9))
        different = _of_different(scores, float(median + SPREADS * (high - median)))
        if not few or len(different) == len(scores):
            scores = different
            break
        scores = different
    return None if len(scores) < LEAST_PERSONS else likeness_of_scores(_pairs(scores))


def _pairs(scores: FloatArray) -> FloatArray:
    """The scores (n, n) of all pairs, once each."""
    return scores[~np.tri(len(scores), dtype=np.bool_)]


def _of_different(scores: FloatArray, most: float) -> FloatArray:
    """The scores (n, n) without the rows and columns of those who are more similar than `most` to
    somebody before them who is kept."""
    kept = np.ones(len(scores), np.bool_)
    if not (_pairs(scores) > most).any():
        return scores
    for row in np.flatnonzero(np.triu(scores > most, 1).any(axis=0)):
        kept[row] = not (scores[:row, row][kept[:row]] > most).any()
    return np.asarray(scores[np.ix_(kept, kept)])


def likeness_of_scores(scores: FloatArray) -> float:
    """The likeness of people, given by the scores (n,) of all pairs of different ones."""
    if len(scores) < FEW_PERSONS * (FEW_PERSONS - 1) // 2:
        return float(scores.mean() + NORMAL_QUANTILE * scores.std())
    return float(np.quantile(scores, QUANTILE))


def digests_of(persons: NDArray[np.int64]) -> Digests:
    """Numbers of 64 bits that look random (the finaliser of SplitMix64; Steele et al., 2014)."""
    mixed = persons.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
