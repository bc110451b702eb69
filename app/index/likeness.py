"""How similar the people of a gallery are: a high quantile of the scores of different people.

It is a function of the gallery's templates alone, so that every process and every engine finds the
same: the PERSONS people whose keys have the smallest digests are compared, by the template of each
with the smallest key.
"""

import numpy as np
from numpy.typing import NDArray

from app.index.comparator import Comparator
from app.types import FloatArray

QUANTILE = 0.99
# With fewer people a single look-alike, or one person under two ids, would decide.
LEAST_PERSONS = 40
PERSONS = 512
# A filter's people are compared again in each search: 5 ms for 512, 1 ms for so many.
FILTERED_PERSONS = 256
# Some of a filter's people may have no template: of more people than this, those with the smallest
# digests are examined.
FILTERED_CHOICE = 4 * FILTERED_PERSONS

Digests = NDArray[np.uint64]


def likeness_of(vectors: FloatArray, comparator: Comparator) -> float | None:
    """The likeness of people given by one template each (n, d); None for too few people."""
    if len(vectors) < LEAST_PERSONS:
        return None
    return likeness_of_scores(comparator.scores(vectors, vectors)[np.triu_indices(len(vectors), 1)])


def likeness_of_scores(scores: FloatArray) -> float:
    """The likeness of people, given by the scores of all pairs of different ones."""
    return float(np.quantile(scores, QUANTILE))


def digests_of(persons: NDArray[np.int64]) -> Digests:
    """Numbers of 64 bits that look random (the finaliser of SplitMix64; Steele et al., 2014)."""
    mixed = persons.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
