"""Search on a GPU: a copy of each index's rows on a device, in half precision, proposes candidates,
and the CPU computes their exact scores.

All rows of an index are in one buffer, one shard after the other, and one scan reads it. With p and
v a probe and a row of length 1, and p' and v' what is kept of them in half precision,
<p, v> - <p', v'> = <p - p', v'> + <p, v - v'>. By Cauchy and Schwarz that is at most
|p - p'| |v'| + |v - v'|; both differences are measured, so the bound holds for every row and probe
(and so do sums in float32, `SUMMING`). A row that a scan does not propose has an estimate no higher
than the last proposed row's, so its cosine is at most that plus the bound. A score is never above
a multiple of the cosine (`UpperBound`): where the cosine that the floor needs is above this sum, no
such row belongs to the answer.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from weakref import WeakSet

import numpy as np

from app.errors import DeviceError
from app.index.certified.codes import RowNumbers
from app.index.certified.search import ProbeSearch, ShardScanner
from app.index.certified.shards import Shard
from app.index.device_rows import SCAN_TIMEOUT_S, SUMMING, DeviceGalleries, DeviceRows, Half
from app.inference.device_memory import DeviceOutOfMemory
from app.locks import new_lock
from app.telemetry.logs import log
from app.types import FloatArray

# Numbers of rows that are requested, one after the other; then the CPU searches all rows.
STEPS = (64, 512, 4_096, 16_384)
FIRST_CAPACITY = 16_384
CHUNK = 16_384  # rows converted at a time
PROBES_A_SCAN = 64
# After a failure the CPU searches for so long before the device is tried again.
RETRY_S = 10.0


@dataclass(slots=True)
class _Scan:
    """What one caller asks for: the nearest `most` rows of all on the device."""

    shards: Sequence[Shard]
    probes: Half
    most: int
    answer: "Future[_Found]" = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Found:
    """Estimates and numbers (n, most) of `count` rows, where the shards lay among them, in that
    order, and the greatest length that rounding took from a row."""

    estimates: FloatArray
    numbers: RowNumbers
    count: int
    starts: dict[Shard, int]
    rounding: float

    def by_shard(self, place: int) -> Iterator[tuple[Shard, RowNumbers]]:
        """The rows of one probe, by their numbers in the shards."""
        shards, starts = list(self.starts), np.fromiter(self.starts.values(), np.int64)
        numbers = np.sort(self.numbers[place])
        shard_of = np.searchsorted(starts, numbers, side="right") - 1
        ends = [*np.flatnonzero(np.diff(shard_of)) + 1, len(numbers)]
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            which = shard_of[first]
            if which >= 0:  # rows before the first shard belong to none, like those between two
                own = numbers[first:end] - starts[which]
                yield shards[which], own[own < len(shards[which].rows)]


class DeviceScanner:
    """`ShardScanner` of one index over its rows on the device."""

    def __init__(self, galleries: DeviceGalleries, dimension: int, cpu: ShardScanner) -> None:
        self._galleries = galleries
        self._dimension = dimension
        self._cpu = cpu
        self._rows: DeviceRows | None = None
        self._starts: dict[Shard, int] = {}
        self._end = 0
        self._rounding = 0.0
        # Shards that will not be searched again; a search that began earlier may still ask.
        self._forgotten: WeakSet[Shard] = WeakSet()
        self._waiting: list[_Scan] = []
        # Where rows lie, while they are copied or zeroed.
        self._placing = new_lock("gpu.placing")
        self._failing, self._failed_at = False, -float("inf")
        self.used_at = time.monotonic()

    @property
    def bytes(self) -> int:
        """Bytes of the device that the rows take."""
        rows = self._rows
        return 0 if rows is None else 2 * rows.capacity * self._dimension

    # --- search ------------------------------------------------------------------------------

    def cover(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        """Score every row of the shards that could be in an answer: on the device, or where
        that cannot be certain on the CPU."""
        for start in range(0, len(searches), PROBES_A_SCAN):
            some = searches[start : start + PROBES_A_SCAN]
            if time.monotonic() - self._failed_at < RETRY_S:
                self._on_the_cpu(shards, some)
                continue
            try:
                self._cover(shards, some)
            except DeviceError as error:
                if not self._failing:
                    log(logging.WARNING, "the GPU cannot search an index, the CPU does",
                        reason=error.detail, tried_again_every_s=RETRY_S)  # fmt: skip
                self._failing, self._failed_at = True, time.monotonic()
                self._on_the_cpu(shards, some)
            else:
                if self._failing:
                    log(logging.INFO, "the GPU searches an index again")
                self._failing = False

    def _on_the_cpu(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        for search in searches:
            search.note_fallback()
        self._cpu.cover(shards, searches)

    def _cover(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        probes = ProbeSearch.stacked(searches)
        halves = probes.astype(np.float16)
        lost = np.linalg.norm(probes - halves.astype(np.float32), axis=1)
        waiting, wanted = list(range(len(searches))), set(shards)
        for most in STEPS:
            found = self._scan(shards, halves[waiting], most)
            if not found.count:
                waiting = []
                break
            # The length of a rounded row is not above 1 by more than what rounding took.
            slack = lost * (1 + found.rounding) + found.rounding + SUMMING
            unsure = []
            for place, one in enumerate(waiting):
                for shard, numbers in found.by_shard(place):
                    if shard in wanted:  # others are of a newer state
                        searches[one].score(shard, numbers)
                last = float(found.estimates[place, -1]) + float(slack[one])
                if found.numbers.shape[1] < found.count and last > searches[one].least_cosine:
                    unsure.append(one)
            waiting = unsure
            if not waiting:
                break
        elsewhere = [shard for shard in shards if shard not in found.starts]
        if elsewhere:
            self._cpu.cover(elsewhere, searches)
        if waiting:
            self._on_the_cpu(shards, [searches[one] for one in waiting])

    def _scan(self, shards: Sequence[Shard], probes: Half, most: int) -> _Found:
        scan = _Scan(shards, probes, most)
        self._waiting.append(scan)
        self._galleries.owner.submit(self._serve)
        try:
            return scan.answer.result(SCAN_TIMEOUT_S)
        except FutureTimeout as error:
            raise DeviceError(f"A scan took more than {SCAN_TIMEOUT_S:.0f} s.") from error

    # --- on the owner's thread -----------------------------------------------------------------

    def _serve(self) -> None:
        """Answer those that wait, as many together as a scan takes."""
        together: list[_Scan] = []
        while self._waiting and self._fits(together, self._waiting[0]):
            together.append(self._waiting.pop(0))
        if not together:  # they were answered with others
            return
        if self._waiting:
            self._galleries.owner.submit(self._serve)
        try:
            answers = self._answers(together)
        except BaseException as error:  # noqa: BLE001 - the callers get it
            for scan in together:
                scan.answer.set_exception(error)
            return
        for scan, found in zip(together, answers, strict=True):
            scan.answer.set_result(found)

    @staticmethod
    def _fits(together: Sequence[_Scan], scan: _Scan) -> bool:
        if not together:
            return True
        probes = sum(len(one.probes) for one in together)
        return scan.most == together[0].most and probes + len(scan.probes) <= PROBES_A_SCAN

    def _answers(self, together: Sequence[_Scan]) -> list[_Found]:
        self.used_at = time.monotonic()
        for scan in together:
            self._place([shard for shard in scan.shards if shard not in self._starts])
        rows, count = self._rows, self._end
        starts = dict(sorted(self._starts.items(), key=lambda one: one[1]))
        most = min(together[0].most, count)
        width = len(together[0].probes[0]) if len(together[0].probes) else 0
        if rows is None or not width:
            nothing = np.empty((0, 0), np.float32), np.empty((0, 0), np.int64)
            return [_Found(*nothing, 0, starts, 0.0) for _ in together]
        probes = np.concatenate([scan.probes for scan in together])
        estimates, numbers = rows.search(probes, count, most)
        ends = np.cumsum([len(scan.probes) for scan in together])
        return [
            _Found(estimates[end - len(scan.probes) : end], numbers[end - len(scan.probes) : end],
                   count, starts, self._rounding)
            for scan, end in zip(together, ends, strict=True)
        ]  # fmt: skip

    def _place(self, shards: Sequence[Shard]) -> None:
        """Copy shards to the device that are not there."""
        new = [shard for shard in shards if shard not in self._forgotten]
        if not new:
            return
        needed = sum(len(shard.rows) for shard in new)
        if self._rows is None or self._end + needed > self._rows.capacity:
            with self._placing:
                self._grow(needed)
        for shard in new:
            with self._placing:  # let removals in between
                start = self._gap(len(shard.rows))
                self._write(shard, start)
                self._starts[shard] = start
                self._end = max(self._end, start + len(shard.rows))

    def _gap(self, size: int) -> int:
        """Where so many rows fit between shards or behind them all."""
        place = 0
        for shard, start in sorted(self._starts.items(), key=lambda one: one[1]):
            if start - place >= size:
                return place
            place = start + len(shard.rows)
        return place

    def _grow(self, needed: int) -> None:
        """A buffer that has room for more rows, without the gaps between shards."""
        held = sum(len(shard.rows) for shard in self._starts)
        least, old = held + needed, self._rows
        try:
            rows = self._galleries.new_rows(
                max(FIRST_CAPACITY, 2 * least), self._dimension, wanted_by=self
            )
        except DeviceOutOfMemory:
            rows = self._galleries.new_rows(least, self._dimension, wanted_by=self)
        starts, end = {}, 0
        for shard, start in sorted(self._starts.items(), key=lambda one: one[1]):
            assert old is not None, "shards lie in it"
            rows.copy(old, start, len(shard.rows), end)
            starts[shard] = end
            end += len(shard.rows)
        self._rows, self._starts, self._end = rows, starts, end
        self._galleries.holding.add(self)
        if old is not None:
            old.free()

    def _write(self, shard: Shard, first: int) -> None:
        assert self._rows is not None, "made for it"
        for start in range(0, len(shard.rows), CHUNK):
            part = slice(start, start + CHUNK)
            vectors = shard.rows.vectors[part]
            # What was removed may still be in a file that another process owns.
            vectors = np.where(shard.rows.alive[part, np.newaxis], vectors, np.float32(0))
            halves = vectors.astype(np.float16)
            off = np.linalg.norm(vectors - halves.astype(np.float32), axis=1)
            self._rounding = max(self._rounding, float(off.max(initial=0.0)))
            self._rows.write(first + start, halves)

    def release(self) -> None:
        """Give the device's memory back; the next search copies the rows again."""
        with self._placing:
            rows, self._rows = self._rows, None
            self._starts, self._end, self._rounding = {}, 0, 0.0
            self._galleries.holding.discard(self)
            if rows is not None:
                try:
                    rows.free()
                except DeviceError as error:
                    log(logging.ERROR, "memory of the GPU was not freed", reason=error.detail)

    # --- changes -----------------------------------------------------------------------------

    def remove(self, shard: Shard, numbers: RowNumbers) -> None:
        """Zero removed rows on the device; they are when this returns."""
        with self._placing:
            start = self._starts.get(shard)
            if start is None or self._rows is None or not len(numbers):
                return
            try:
                self._rows.zero(start + np.sort(numbers))
            except DeviceError as error:  # the device failed altogether, and its memory with it
                log(logging.ERROR, "removed rows may be left on the GPU", reason=error.detail)

    def forget(self, shards: Sequence[Shard]) -> None:
        """Zero the rows of shards that are searched no more."""
        self._forgotten.update(shards)
        try:
            self._galleries.owner.submit(self._forget, shards).result(SCAN_TIMEOUT_S)
        except (DeviceError, FutureTimeout) as error:
            log(logging.ERROR, "removed rows may be left on the GPU", reason=str(error))

    def _forget(self, shards: Sequence[Shard]) -> None:
        with self._placing:
            for shard in shards:
                start = self._starts.pop(shard, None)
                if start is not None and self._rows is not None:
                    self._rows.zero(np.arange(start, start + len(shard.rows)))
            ends = (start + len(shard.rows) for shard, start in self._starts.items())
            self._end = max(ends, default=0)
        if not self._starts:
            self.release()
