"""How the scores of a probe with the templates of a person make one score, and how many different
templates a person's templates amount to.

With the centroid c of a person's templates v (their sum, scaled to length 1), the cosine with a
probe x is x.c = sum(x.v) / |sum(v)|. So the scores with the templates and the length of their sum
are all that a centroid's score needs: no centroid is made, and none can outlive a template. Where
degraded faces lower the scores (`app.index.comparator`), the lowered scores are added up, so that a
centroid's score is never above the cosine either.

A stranger has as many chances to be taken for a person as the person has templates, but templates
that are nearly the same are matched by the same strangers. The effective number of m templates is
the magnitude of their set (Leinster & Meckes, Entropy 2016): the sum of the weights w that solve
Z w = 1, where Z = exp(-DECAY * Euclidean distance). Copies of one template count as one, templates
without anything in common as one each, and copies do not change what others count. DECAY is chosen
on LFW (docs/decisions.md): it gives the rise of the false match rate with 2 to 236 photos of a
person, and with near-copies of one photo, by one exponent.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.types import FloatArray

Floats = NDArray[np.float64]
Numbers = NDArray[Any]


class PersonScore(StrEnum):
    """The score of a person with several templates; with one template all three are the same.

    `best`: the score with the most similar template. `centroid`: the score with the centroid of the
    templates. `fused`: the mean of both.
    """

    BEST = "best"
    CENTROID = "centroid"
    FUSED = "fused"

    def of(self, best: Numbers, total: Numbers, held: Any, length: Any) -> Floats:
        """The scores (n,) of persons whose `held` templates have these highest scores and sums of
        scores, and whose vectors add up to one of that length."""
        if self is PersonScore.BEST:
            return np.asarray(best)
        centroid = np.where(held > 1, total / np.maximum(length, SHORTEST), best)
        return centroid if self is PersonScore.CENTROID else (best + centroid) / 2

    def of_templates(self, scores: Numbers, vectors: Numbers) -> float:
        """The score of one person, of whose templates (n, d) these are the scores (n,)."""
        length = np.linalg.norm(vectors.sum(axis=0, dtype=np.float64))
        best, total = scores.max(keepdims=True), scores.sum(keepdims=True, dtype=np.float64)
        return float(self.of(best.astype(np.float64), total, np.array([len(scores)]), length)[0])

    def most(self, best: Floats, ratio: Floats) -> Floats:
        """What the scores (n,) can be at most, given the highest scores and `ratios_of` persons.

        As no template scores higher than the best, their sum is m times that at most.
        """
        if self is PersonScore.BEST:
            return best
        centroid = np.where(best > 0, best * ratio, best)
        return centroid if self is PersonScore.CENTROID else (best + centroid) / 2

    def least_best(self, score: float, ratio: float) -> float:
        """The lowest score with the best template that a person of that score has who has this
        ratio or a smaller one."""
        if self is PersonScore.BEST or score <= 0:
            return score
        return score / (ratio if self is PersonScore.CENTROID else (1 + ratio) / 2)


# The sum of two templates that do not point away from each other is longer than this. A shorter
# one counts as so long: the centroid of templates that cancel out would be a random direction.
SHORTEST = 1.0


def ratios_of(held: Numbers, length: Numbers) -> Floats:
    """By how much a score with the centroid can exceed the one with the best template, at most:
    1 for equal templates and for a single one, and the more, the more they differ."""
    return np.asarray(np.maximum(held / np.maximum(length, SHORTEST), 1.0))


DECAY = 5.0
# Of a person who has more, so many are compared and the others are assumed to be like them.
MOST_COMPARED = 512
# Added to the diagonal, so that the equations have one solution where templates are equal.
_RIDGE = 1e-3


def effective_templates(vectors: FloatArray) -> float:
    """The effective number of the templates of one person, unit vectors (m, d), in any fixed order:
    from 1 to m, and 0 for none."""
    if not len(vectors):
        return 0.0
    chosen = compared(len(vectors))
    return float(effective_numbers(vectors[chosen][np.newaxis], len(vectors))[0])


def compared(count: int) -> NDArray[np.intp]:
    """Which of a person's templates are compared: all, or MOST_COMPARED that are evenly spaced."""
    if count <= MOST_COMPARED:
        return np.arange(count)
    return np.linspace(0, count - 1, MOST_COMPARED).astype(np.intp)


def effective_numbers(vectors: FloatArray, count: int) -> Floats:
    """The effective numbers (k,) of the templates of k persons who have `count` each, of whom the
    unit vectors (k, m, d) are those to compare."""
    k, m, _ = vectors.shape
    if m == 1:
        return np.ones(k)
    similarities = (vectors @ vectors.transpose(0, 2, 1)).astype(np.float64)
    alike = np.exp(-DECAY * np.sqrt(np.maximum(2.0 - 2.0 * similarities, 0.0)))
    alike[:, np.arange(m), np.arange(m)] = 1.0 + _RIDGE
    found = np.linalg.solve(alike, np.ones((k, m, 1))).sum(axis=(1, 2))
    found = np.clip(found, 1.0, m)
    if count > m:
        # m templates of which any two are alike to the same extent: n = m / (1 + (m - 1) z).
        found = count / (1.0 + (count - 1) * (m / found - 1.0) / (m - 1))
    return np.asarray(found, np.float64)
