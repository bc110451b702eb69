"""Certified searches of coded rows: of one probe the best persons, and of many probes at once the
most similar row of another person.

The scan's estimates say which rows could belong to the answer; only exact scores decide. A score
is never above a multiple of the cosine with some vector (`UpperBound`), and that cosine is what is
estimated. The best persons so far set a floor. The floor and the error bound set the estimate that
a row must have to be scored, in this scan and in the next. A row that is not scored is thereby
known to be below the floor, so an answer equals that of an exhaustive search. Where the floor is
given from the start, one scan of the codes serves many probes.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from threading import Semaphore
from typing import Protocol

import faiss
import numpy as np

from app.index.certified.codes import ErrorBound, Quantiser, RowNumbers
from app.index.certified.gathering import Gathering
from app.index.certified.persons import Collector
from app.index.certified.rows import Rows
from app.index.certified.shards import Shard
from app.index.comparator import Comparator, Probe
from app.index.port import Ids, NearestOthers, SearchCounts
from app.inference.sharing import cores_are_busy
from app.types import FloatArray

PROMISING = 64
MOST_TOGETHER = 16  # searches that one scan of the codes serves: more bring nothing


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
        self._rotated = quantiser.rotate(probe.upper_bound.vector)
        self._bound = bound
        self._counts = counts

    def cover(self, shard: Shard) -> None:
        """Score every row of the shard that could be above the floor."""
        radius = self._first_radius(shard)
        self._examine(shard, *shard.codes.scan.within(self._rotated, radius))
        self._score_outliers(shard)
        self._certify(shard, radius)

    @staticmethod
    def cover_together(shard: Shard, searches: Sequence["ProbeSearch"]) -> None:
        """The same for several searches, whose first scans are one: it reads the codes once."""
        radius = min(search._first_radius(shard) for search in searches)
        rotated = [search._rotated for search in searches]
        if len(searches) == 1 or radius <= max(probe.lowest for probe in rotated):
            for search in searches:
                search.cover(shard)
            return
        limits, rows, estimates = shard.codes.scan.within_all(rotated, radius)
        for search, start, stop in zip(searches, limits, limits[1:], strict=False):
            search._examine(shard, rows[start:stop], estimates[start:stop])
            search._score_outliers(shard)
            search._certify(shard, radius)

    def _first_radius(self, shard: Shard) -> float:
        # A floor that few rows have set is low: what earlier searches needed is a better guess.
        radius = self._radius(shard) if self.best.floor > 0 else 0.0
        return max(radius, shard.first_radius.of(self._probe.lowered))

    def _certify(self, shard: Shard, radius: float) -> None:
        """Score what a scan with that radius may have left out."""
        if self.best.floor <= 0:
            # Nothing to certify against: too few persons, or none that resembles the probe.
            self._counts.exhaustive += 1
            shard.rows.score_all(self._probe, self.best)
            return
        needed = self._radius(shard)
        shard.first_radius.note(needed, self._probe.lowered)
        if needed < radius:
            self._counts.widened += 1
            rows, estimates = shard.codes.scan.within(self._rotated, needed)
            # The first scan found the others, and the floor has not fallen since. An infinite
            # estimate is none.
            new = (estimates < radius) | np.isinf(estimates)
            self._examine(shard, rows[new], estimates[new])

    def _radius(self, shard: Shard) -> float:
        return self._bound.lowest_estimate(
            self.least_cosine, shard.least_projection, shard.most_residual, self._rotated.step
        )

    def _examine(self, shard: Shard, rows: RowNumbers, estimates: FloatArray) -> None:
        """Score those of a scan's rows that could be above the floor."""
        self._counts.scans += 1
        if len(rows) > 2 * PROMISING:
            # The most promising first: they raise the floor, and most others need no look then.
            cut = np.partition(estimates, -PROMISING)[-PROMISING]
            self.score(shard, rows[estimates >= cut])
            others = estimates < cut
            if self.best.floor > 0:
                others &= estimates >= self._radius(shard)
            rows, estimates = rows[others], estimates[others]
        if self.best.floor > 0:
            codes = shard.codes
            needed = self._bound.lowest_estimate(
                self.least_cosine, codes.projection[rows], codes.residual[rows], self._rotated.step
            )
            rows = rows[estimates >= needed]
        self.score(shard, rows)

    def _score_outliers(self, shard: Shard) -> None:
        self._counts.scored += len(shard.outliers)
        shard.outliers.score_all(self._probe, self.best)

    @staticmethod
    def stacked(searches: Sequence["ProbeSearch"]) -> FloatArray:
        """The unit vectors (n, d) that bound the scores of several searches."""
        return np.array([search._probe.upper_bound.vector for search in searches], np.float32)

    @property
    def least_cosine(self) -> float:
        """What a row that matters has with that vector at least."""
        return self._probe.upper_bound.least_cosine(self.best.floor)

    def note_fallback(self) -> None:
        """Count a search that a device could not do."""
        self._counts.fallbacks += 1

    def score(self, shard: Shard, rows: RowNumbers) -> None:
        """Offer the exact scores of some rows."""
        self._counts.scored += len(rows)
        shard.rows.score(self._probe, rows, self.best)


class _Thread(threading.local):
    """What was set for a thread."""

    spreads: bool = True


_thread = _Thread()


def _spread_nothing() -> None:
    """FAISS starts no threads of its own for this one."""
    if _thread.spreads:
        faiss.omp_set_num_threads(1)
        _thread.spreads = False


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
    have the threads, each search stays on the thread that it is on. On the thread of a photo it
    stays there even when photos have the cores. More callers than there are threads share scans.
    """

    def __init__(self, threads: Executor, count: int = 1) -> None:
        """`count` is the number of the threads."""
        self._threads = threads
        self._count = count
        self._free = Semaphore(count)
        self._gathering = Gathering[ProbeSearch](count, MOST_TOGETHER)

    def cover(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        """Score every row of the shards that could be in an answer. Searches of several callers
        over the same shards are done together where they would have to wait for each other; a
        caller with many does so many at a time that the others need not wait for all of them."""
        most = MOST_TOGETHER * self._count
        for start in range(0, len(searches), most):
            some = searches[start : start + most]
            self._gathering.run(shards, some, partial(self._cover, shards))

    def _cover(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        # So many that there is a part for each thread that has a core.
        busy = cores_are_busy()
        size = -(-len(searches) * len(shards) // (1 if busy else self._count))
        size = max(1, min(MOST_TOGETHER, size))
        self._share(
            [
                partial(ProbeSearch.cover_together, shard, searches[start : start + size])
                for shard in shards
                for start in range(0, len(searches), size)
            ],
            0 if busy else self._count,
        )

    def _share(self, parts: Sequence[Callable[[], None]], most: int) -> None:
        """Do all parts; the caller and its helpers, `most` at most, take the next one in turn."""
        remaining = iter(parts)

        def work() -> None:
            for part in remaining:
                part()

        helpers: list[Future[None]] = []
        while len(helpers) < min(most, len(parts) - 1) and self._free.acquire(blocking=False):
            try:
                helper = self._threads.submit(work)
            except (MemoryError, RuntimeError):  # no memory for a thread: the caller does it all
                self._free.release()
                break
            helper.add_done_callback(lambda _: self._free.release())
            helpers.append(helper)
        _spread_nothing()
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


# So many probes' vectors, or rows of similarities, are in memory at a time.
PAIRS_AT_ONCE = 16_384
ROWS_AT_ONCE = 65_536


class OtherPersonSearch:
    """The search for (n, d) unit vectors of persons (n,) among the rows of all other persons."""

    def __init__(
        self, probes: FloatArray, persons: Ids, floor: float, comparator: Comparator
    ) -> None:
        self._comparator = comparator
        self._probes = probes
        self._persons = persons
        self._floor = floor
        self.found = NearestOthers(
            np.full(len(probes), -1, np.int64), np.full(len(probes), -np.inf, np.float32)
        )

    def cover(self, shards: Sequence[Shard], quantiser: Quantiser, bound: ErrorBound) -> None:
        """Score every row of coded shards that reaches the floor."""
        rotated = [quantiser.rotate(probe) for probe in self._probes]
        step, lowest = max(one.step for one in rotated), max(one.lowest for one in rotated)
        for shard in shards:
            radius = -np.inf
            if self._floor > 0:
                codes = shard.codes
                radius = bound.lowest_estimate(
                    self._floor, float(codes.projection.min()), float(codes.residual.max()), step
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
        """Record one row per probe, where it is better than what was found."""
        found = self.found
        now = found.similarities[probes]
        better = (similarities > now) | ((similarities == now) & (keys < found.keys[probes]))
        better &= (similarities >= self._floor) & np.isfinite(similarities)
        found.keys[probes[better]] = keys[better]
        found.similarities[probes[better]] = similarities[better]
