"""How far a code's estimate of a similarity can be from the similarity itself.

A stored unit vector v is turned by a random rotation and rounded to a code r. With r = a·v + b·u,
u a unit vector at right angles to v, the estimate of a probe q is <q, r> = a·s + b·√(1−s²)·<w, u>,
where s is the exact similarity and w the unit vector that q adds to s·v. The rotation is drawn from
all rotations alike, so u lies anywhere on the sphere around v with the same probability, and
<w, u> is one coordinate of a random point on a sphere of d − 1 dimensions: its square is Beta(1/2,
(d − 2)/2). That holds for every v and q, whatever the data look like; it is the theorem of RaBitQ
(Gao & Long, SIGMOD 2024), which rounds to one bit, and holds for two in the same way.

An answer could be wrong only if one of its true members had such an estimate, so the chance of a
wrong answer is at most FAILURE times the length of the answer, however many vectors there are.
"""

import math
from functools import cache, cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FAILURE = 1e-9
_SLACK = 1e-5  # float32 sums of some hundred terms

Number = TypeVar("Number", float, NDArray[np.floating[Any]])


class ErrorBound:
    """The lowest estimate that a vector of a given similarity can have.

    `reach` bounds |<w, u>|. `rounding` bounds, in steps of the scan's table, the sum of the
    roundings of `tables` entries: each is off by half a step at most, and their signs are those
    of a random rotation (Hoeffding).
    """

    def __init__(self, dimension: int, tables: int, failure: float = FAILURE) -> None:
        self._dimension = dimension
        self._failure = failure
        self.rounding = math.sqrt(tables * math.log(1 / failure) / 2)

    @cached_property
    def reach(self) -> float:
        """Calculated when it is first used: only an encoded shard needs it, and it needs SciPy."""
        from scipy.special import betainccinv  # noqa: PLC0415 (see `services.import_scipy`)

        return math.sqrt(betainccinv(0.5, (self._dimension - 2) / 2, 2 * self._failure))

    def lowest_estimate(
        self, similarity: float, projection: Number, residual: Number, step: float
    ) -> Number:
        """The estimate below which no vector of at least `similarity` (> 0) lies.

        `projection` and `residual` are a and b of the code, or of many; it rises with a and falls
        with b, so the least a and the greatest b of some codes give a bound for all of them.
        """
        spread = self.reach * math.sqrt(max(0.0, 1.0 - similarity * similarity))
        return projection * similarity - residual * spread - (self.rounding * step + _SLACK)


@cache
def bound_of(dimension: int) -> ErrorBound:
    """The bound of codes of that dimension, with a table for each pair of coordinates."""
    return ErrorBound(dimension, dimension // 2)
