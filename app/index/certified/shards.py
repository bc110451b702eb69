"""Shards: rows that are coded, and what a search looks at."""

from dataclasses import dataclass, replace

import numpy as np

from app.index.certified.codes import CodedRows, Quantiser, RowNumbers, bound_of
from app.index.certified.rows import Rows, WriteBuffer
from app.index.port import Ids
from app.types import FloatArray

# Where the radius of a shard's first scan starts. It changes no answer, only how often a search
# needs a second scan. It is the median of what searches for so many of the shard's own rows would
# need,
PILOT_PROBES = 16
# for the similarity of their row of this rank: searches for a few persons have a higher floor,
PILOT_RANK = 64
# but no radius that more than this share of the rows would reach. (With 0.05, nearly every search
# for five persons among 65,536 random rows needed a second scan; with 0.25 none.)
PILOT_SHARE = 0.25
# Then it follows what searches need, in such steps, until it is too large for this share of them.
STEP = 0.02
TOO_LARGE = 0.05
# Probes whose scores may be lowered by so much more than those of others have a radius of
# their own: their floors are lower, and with one radius for all each search would return many rows.
GROUP_WIDTH = 0.3
GROUPS = 4
# The rows with the least projections, and as many with the most residuals. They would lower the
# radius of all other rows, and so few are scored exactly in less time than that costs.
OUTLIER_SHARE = 0.0025


class FirstRadius:
    """The radius of a shard's first scan. It follows what searches needed, so that it is too large
    for few of them: these scan twice. A smaller one would return rows that nobody needs."""

    def __init__(self, radius: float) -> None:
        self._radii = [radius] * GROUPS

    @property
    def radius(self) -> float:
        """That of probes whose scores are hardly lowered."""
        return self._radii[0]

    def of(self, lowered: float) -> float:
        """That of probes whose scores may be lowered by so much."""
        return self._radii[_group_of(lowered)]

    def note(self, needed: float, lowered: float = 0.0) -> None:
        """A search for such a probe needed the rows with an estimate of at least `needed`."""
        # One step of a quantile's search (Robbins and Monro, 1951). A step that is lost between
        # two threads does no harm. Above 0 are the estimates of half of all rows.
        group = _group_of(lowered)
        change = TOO_LARGE if needed >= self._radii[group] else TOO_LARGE - 1
        self._radii[group] = max(0.0, self._radii[group] + STEP * change)


def _group_of(lowered: float) -> int:
    return min(int(lowered / GROUP_WIDTH), GROUPS - 1)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Shard:
    """Rows that are coded. Of the values that bound the error of codes, `least_projection` and
    `most_residual` are the extremes without those of the `outliers`, the few rows whose estimates
    say least: searches score all of these exactly, from a copy in one piece."""

    rows: Rows
    codes: CodedRows
    first_radius: FirstRadius
    least_projection: float
    most_residual: float
    outliers: Rows

    @classmethod
    def of(cls, rows: Rows, quantiser: Quantiser) -> "Shard":
        """Encode rows: some 30 µs each of one core."""
        codes = quantiser.encode(rows.vectors)
        shard = cls.of_codes(rows, codes, 0.0)
        typical = [
            shard._pilot_of(quantiser, rows.vectors[number])
            for number in range(0, len(rows), max(1, len(rows) // PILOT_PROBES))
        ]
        return replace(shard, first_radius=FirstRadius(float(np.median(typical))))

    @classmethod
    def of_codes(cls, rows: Rows, codes: CodedRows, first_radius: float) -> "Shard":
        """A shard whose codes are known."""
        count = int(OUTLIER_SHARE * len(rows))
        least = np.partition(codes.projection, count)[count]
        most = np.partition(codes.residual, -1 - count)[-1 - count]
        outliers = (codes.projection < least) | (codes.residual > most)
        copy = rows.copy_of(outliers)
        return cls(rows, codes, FirstRadius(first_radius), float(least), float(most), copy)

    def _pilot_of(self, quantiser: Quantiser, vector: FloatArray) -> float:
        """Of a search for that vector: the radius for the floor that its best rows probably set,
        but PILOT_SHARE of all rows at most."""
        probe = quantiser.rotate(vector)
        _, estimates = self.codes.scan.within(probe, probe.lowest + probe.step)
        if not len(estimates):
            return 0.0
        estimates = np.sort(estimates)[::-1]
        floor = estimates[min(PILOT_RANK, len(estimates) - 1)] / self.codes.projection.mean()
        most = estimates[int(PILOT_SHARE * (len(estimates) - 1))]
        radius = bound_of(quantiser.dimension).lowest_estimate(
            float(np.clip(floor, 0.0, 1.0)), self.least_projection, self.most_residual, probe.step
        )
        return max(radius, float(most))

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, without what is mapped from files."""
        return self.rows.memory + self.codes.memory + self.outliers.memory

    def remove(self, keys: Ids) -> RowNumbers:
        """Mark rows as removed, and zero their codes, and their vectors in memory; returns the
        numbers of these rows. One caller at a time."""
        numbers = self.rows.remove(keys)
        self.codes.scan.forget(numbers)
        self.outliers.remove(keys)
        return numbers


@dataclass(frozen=True, slots=True)
class SearchState:
    """What a search looks at. Replaced as a whole, so that a search keeps what it began with."""

    shards: tuple[Shard, ...]
    write_buffer: WriteBuffer

    @property
    def parts(self) -> list[Rows]:
        """All rows, removed ones too: those of every shard, and the write buffer's."""
        return [*(shard.rows for shard in self.shards), self.write_buffer.rows]
