"""One probe against coded rows, certified.

The scan's estimates say which rows could belong to the answer; only exact scores decide. A score is
never above the cosine, which the estimates are of. The best found so far set a floor, the floor and
the error bound set the estimate that a row must have to matter, and the next scan looks no lower. A
row that is never examined is thereby known to be below the floor, so an answer equals that of an
exhaustive search."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from threading import Semaphore
from typing import Protocol

import faiss
import numpy as np

from app.index.certified.bound import ErrorBound
from app.index.certified.codes import Quantiser, RowNumbers
from app.index.certified.persons import Collector
from app.index.certified.rows import Shard
from app.index.comparator import Probe
from app.index.port import SearchCounts
from app.types import FloatArray

PROMISING = 128


class ProbeSearch:
    """The search of one probe for its nearest persons. Several threads may each cover a shard
    at a time; what one finds raises the floor for all."""

    def __init__(
        self,
        probe: Probe,
        best: Collector,
        quantiser: Quantiser,
        bound: ErrorBound,
        counts: SearchCounts,
    ) -> None:
        self.best = best
        self._probe = probe
        self._rotated = quantiser.rotate(probe.vector)
        self._bound = bound
        self._counts = counts

    def cover(self, shard: Shard) -> None:
        """Score every row of the shard that could be above the floor."""
        radius = shard.pilot_radius if self.best.floor <= 0 else self._radius(shard)
        self._scan(shard, radius)
        if self.best.floor <= 0:
            # Nothing to certify against: too few persons, or none that resembles the probe.
            self._counts.exhaustive += 1
            shard.rows.score_all(self._probe, self.best)
        elif self._radius(shard) < radius:
            self._counts.widened += 1
            self._scan(shard, self._radius(shard))

    def _radius(self, shard: Shard) -> float:
        return self._bound.lowest_estimate(
            self.best.floor, shard.least_projection, shard.most_residual, self._rotated.step
        )

    def _scan(self, shard: Shard, radius: float) -> None:
        rows, estimates = shard.codes.scan.within(self._rotated, radius)
        self._counts.scans += 1
        if len(rows) > 2 * PROMISING:
            # The most promising first: they raise the floor, and most others need no look then.
            order = np.argpartition(-estimates, PROMISING)
            self.score(shard, rows[order[:PROMISING]])
            rows, estimates = rows[order[PROMISING:]], estimates[order[PROMISING:]]
        if self.best.floor > 0:
            codes = shard.codes
            least = self._bound.lowest_estimate(
                self.best.floor, codes.projection[rows], codes.residual[rows], self._rotated.step
            )
            rows = rows[estimates >= least]
        self.score(shard, rows)

    @staticmethod
    def stacked(searches: Sequence["ProbeSearch"]) -> FloatArray:
        """The probes (n, d) of several searches."""
        return np.array([search._probe.vector for search in searches], np.float32)

    def note_fallback(self) -> None:
        """Count a search that a device could not do."""
        self._counts.fallbacks += 1

    def score(self, shard: Shard, rows: RowNumbers) -> None:
        """Offer the exact scores of some rows."""
        self._counts.scored += len(rows)
        shard.rows.score(self._probe, rows, self.best)


class ShardScanner(Protocol):
    """Searches shards. It may hold copies of them."""

    def cover(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        """Score every row of the shards that could be in an answer."""
        ...

    def remove(self, shard: Shard, numbers: RowNumbers) -> None:
        """Erase removed rows from the copy of a shard; they are when this returns."""
        ...

    def forget(self, shards: Sequence[Shard]) -> None:
        """Free the copies of shards that are searched no more."""
        ...


class ThreadScanner:
    """Scans the codes: several probes at once, or several shards for one probe.

    The caller scans too, and threads help it where any are free: so under load, when other searches
    have the threads, each search stays on the thread that it is on and waits for no other.
    """

    def __init__(self, threads: Executor, count: int = 1) -> None:
        """`count` is the number of the threads."""
        self._threads = threads
        self._free = Semaphore(count)

    def cover(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        """Score every row of the shards that could be in an answer."""
        if len(searches) == 1:
            self._share([partial(searches[0].cover, shard) for shard in shards])
        else:
            self._share([partial(_cover_all, search, shards) for search in searches])

    def _share(self, parts: Sequence[Callable[[], None]]) -> None:
        """Do all parts; the caller and its helpers take the next one in turn."""
        remaining = iter(parts)

        def work() -> None:
            for part in remaining:
                part()

        helpers: list[Future[None]] = []
        while len(helpers) < len(parts) - 1 and self._free.acquire(blocking=False):
            helpers.append(self._threads.submit(work))
            helpers[-1].add_done_callback(lambda _: self._free.release())
        faiss.omp_set_num_threads(1)  # of this thread: FAISS spreads nothing further
        try:
            work()
        finally:
            begun = [helper for helper in helpers if not helper.cancel()]
        for helper in begun:
            helper.result()

    def remove(self, shard: Shard, numbers: RowNumbers) -> None:
        """There are no copies."""

    def forget(self, shards: Sequence[Shard]) -> None:
        """There are no copies."""


def _cover_all(search: ProbeSearch, shards: Sequence[Shard]) -> None:
    for shard in shards:
        search.cover(shard)
