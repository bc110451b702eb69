"""How the scores of a probe with the templates of a person make one score.

With the centroid c of a person's templates v (their sum, scaled to length 1), the cosine with a
probe x is x.c = sum(x.v) / |sum(v)|. So the scores with the templates and the length of their sum
are all that a centroid's score needs: no centroid is made, and none can outlive a template. Where
degraded faces lower the scores (`app.index.comparator`), the lowered scores are added up, so that a
centroid's score is never above the cosine either.
"""

from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
