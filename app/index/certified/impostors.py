"""Many probes at once: of each, the most similar row that is another person's.

As the floor is given from the start, one scan of the codes serves many probes, and only what could
reach the floor is scored. What is not scored is below it, as in `search`.
"""

from collections.abc import Sequence

import numpy as np

from app.index.certified.bound import ErrorBound
from app.index.certified.codes import Quantiser, RowNumbers
from app.index.certified.rows import Rows, Shard
from app.index.comparator import Comparator
from app.index.port import Ids, NearestImpostors
from app.types import FloatArray

# So many probes' vectors, or rows of similarities, are in memory at a time.
PAIRS_AT_ONCE = 16_384
ROWS_AT_ONCE = 65_536


class ImpostorSearch:
    """The search for (n, d) unit vectors of persons (n,) among the rows of all other persons."""

    def __init__(
        self, probes: FloatArray, persons: Ids, floor: float, comparator: Comparator
    ) -> None:
        self._comparator = comparator
        self._probes = probes
        self._persons = persons
        self._floor = floor
        self.found = NearestImpostors(
            np.full(len(probes), -1, np.int64), np.full(len(probes), -np.inf, np.float32)
        )

    def cover(self, shards: Sequence[Shard], quantiser: Quantiser, bound: ErrorBound) -> None:
        """Score every row of coded shards that reaches the floor."""
        rotated = [quantiser.rotate(probe) for probe in self._probes]
        step, lowest = max(one.step for one in rotated), max(one.lowest for one in rotated)
        for shard in shards:
            radius = -np.inf
            if self._floor > 0:
                radius = bound.lowest_estimate(
                    self._floor, shard.least_projection, shard.most_residual, step
                )
            if radius <= lowest:  # the codes decide nothing
                self.score_all(shard.rows)
                continue
            limits, rows, estimates = shard.codes.scan.within_all(rotated, radius)
            probes = np.repeat(np.arange(len(self._probes)), np.diff(limits))
            codes = shard.codes
            least = bound.lowest_estimate(
                self._floor, codes.projection[rows], codes.residual[rows], step
            )
            likely = (estimates >= least) & shard.rows.alive[rows]
            likely &= shard.rows.persons[rows] != self._persons[probes]
            self._score(probes[likely], rows[likely], shard.rows)

    def score_all(self, rows: Rows) -> None:
        """Score every row."""
        every = np.arange(len(self._probes))
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            similarities = self._comparator.scores(self._probes, rows.vectors[part])
            similarities[:, ~rows.alive[part]] = -np.inf
            similarities[self._persons[:, None] == rows.persons[part]] = -np.inf
            best = similarities.argmax(axis=1)
            self._keep(every, similarities[every, best], rows.keys[part][best])

    def _score(self, probes: RowNumbers, numbers: RowNumbers, rows: Rows) -> None:
        """Score pairs of a probe and a row."""
        for start in range(0, len(numbers), PAIRS_AT_ONCE):
            mine, theirs = (one[start : start + PAIRS_AT_ONCE] for one in (probes, numbers))
            similarities = self._comparator.pairwise(self._probes[mine], rows.vectors[theirs])
            keys = rows.keys[theirs]
            order = np.lexsort((keys, -similarities, mine))
            first = order[np.unique(mine[order], return_index=True)[1]]
            self._keep(mine[first], similarities[first], keys[first])

    def _keep(self, probes: RowNumbers, similarities: FloatArray, keys: Ids) -> None:
        """Record one row a probe, where it is better than what was found."""
        found = self.found
        now = found.similarities[probes]
        better = (similarities > now) | ((similarities == now) & (keys < found.keys[probes]))
        better &= (similarities >= self._floor) & np.isfinite(similarities)
        found.keys[probes[better]] = keys[better]
        found.similarities[probes[better]] = similarities[better]
