"""Rows of the index: parallel arrays, and their exact similarities to a probe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from app.index.certified.codes import CodedRows, Quantiser, RowNumbers
from app.index.certified.persons import Collector
from app.index.comparator import Probe
from app.index.port import Ids, Templates
from app.types import FloatArray

Flags = NDArray[np.bool_]
PILOT_PROBES = 16
PILOT_SHARE = 0.05


@dataclass(slots=True, eq=False, weakref_slot=True)
class Rows:
    """Template keys (n,), ascending; persons (n,); unit vectors (n, d), in memory or mapped from a
    file; and which rows are still `alive`, the one thing that changes."""

    keys: Ids
    persons: Ids
    vectors: FloatArray
    alive: Flags

    @classmethod
    def of(cls, templates: Templates) -> "Rows":
        """Rows of templates, sorted by key."""
        order = np.argsort(templates.keys, kind="stable")
        vectors = np.ascontiguousarray(templates.vectors[order], np.float32)
        alive = np.ones(len(order), np.bool_)
        return cls(templates.keys[order], templates.person_keys[order], vectors, alive)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def memory(self) -> int:
        """Bytes of memory that the arrays take, without those that are mapped from files."""
        arrays: Sequence[NDArray[Any]] = (self.keys, self.persons, self.vectors, self.alive)
        return sum(array.nbytes for array in arrays if array.flags.writeable)

    @property
    def dimension(self) -> int:
        """Numbers a vector."""
        return int(self.vectors.shape[1])

    def remove(self, keys: Ids) -> RowNumbers:
        """Mark rows as removed, and zero their vectors in memory; returns the numbers of those that
        were alive. One caller at a time."""
        numbers = self.find(keys)
        numbers = numbers[self.alive[numbers]]
        self.alive[numbers] = False
        vectors = self.vectors  # a file, which cannot be written here, may take its place
        if vectors.flags.writeable:
            vectors[numbers] = 0
        return numbers

    def copy_vectors(self) -> None:
        """Keep copies in memory, where removed vectors can be forgotten. Beside `remove`."""
        alive = self.alive.copy()
        self.keys, self.persons = self.keys.copy(), self.persons.copy()
        self.vectors = np.where(alive[:, np.newaxis], self.vectors, np.float32(0))
        self.vectors[~self.alive] = 0  # also those that were removed meanwhile

    def first(self, count: int) -> "Rows":
        """A view of the first rows."""
        place = slice(count)
        return Rows(self.keys[place], self.persons[place], self.vectors[place], self.alive[place])

    def templates(self, mask: Flags) -> Templates:
        """A copy of the rows that the mask (n,) names."""
        return Templates(self.keys[mask], self.persons[mask], self.vectors[mask])

    def find(self, keys: Ids) -> RowNumbers:
        """The numbers of those rows that hold one of the keys."""
        places = np.searchsorted(self.keys, keys)
        places = places[places < len(self.keys)]
        found: RowNumbers = places[np.isin(self.keys[places], keys)]
        return np.unique(found)

    def score_all(self, probe: Probe, best: Collector) -> None:
        """Offer every row's exact score with the probe."""
        scores = self._products(probe.vector)
        for part in probe.lowerings:
            scores -= part.of(self._products(part.vector))
        self.offer(scores, best)

    def _products(self, vector: FloatArray) -> FloatArray:
        """The inner product of every row with a vector (d,)."""
        products = np.empty(len(self), np.float32)
        vectors = self.vectors  # held while C reads it: a file may take its place
        if len(self):
            faiss.fvec_inner_products_ny(
                faiss.swig_ptr(products), faiss.swig_ptr(vector), faiss.swig_ptr(vectors),
                len(vector), len(self),
            )  # fmt: skip
        return products

    def offer(self, similarities: FloatArray, best: Collector) -> None:
        """Offer scores (n,) of all rows; removed rows are ignored."""
        if not self.alive.all():
            living = np.flatnonzero(self.alive)
            best.offer(similarities[living], self.persons[living], self.keys[living])
        else:
            best.offer(similarities, self.persons, self.keys)

    def score(self, probe: Probe, numbers: RowNumbers, best: Collector) -> None:
        """Offer the exact scores of some rows."""
        numbers = numbers[self.alive[numbers]]
        best.offer(self.scores_of(probe, numbers), self.persons[numbers], self.keys[numbers])

    def scores_of(self, probe: Probe, numbers: RowNumbers) -> FloatArray:
        """The exact scores (n,) of some rows."""
        numbers = np.ascontiguousarray(numbers)
        scores = self._products_of(probe.vector, numbers)
        for part in probe.lowerings:
            scores -= part.of(self._products_of(part.vector, numbers))
        return scores

    def _products_of(self, vector: FloatArray, numbers: RowNumbers) -> FloatArray:
        """The inner products of some rows with a vector (d,)."""
        products = np.empty(len(numbers), np.float32)
        vectors = self.vectors
        if len(numbers):
            faiss.fvec_inner_products_by_idx(
                faiss.swig_ptr(products), faiss.swig_ptr(vector), faiss.swig_ptr(vectors),
                faiss.swig_ptr(numbers), len(vector), 1, len(numbers),
            )  # fmt: skip
        return products


def living(parts: Sequence[Rows], masks: Sequence[Flags]) -> Rows:
    """A copy of the rows of several parts that their masks name, sorted by key."""
    return Rows.of(
        Templates(
            np.concatenate([part.keys[mask] for part, mask in zip(parts, masks, strict=True)]),
            np.concatenate([part.persons[mask] for part, mask in zip(parts, masks, strict=True)]),
            np.concatenate([part.vectors[mask] for part, mask in zip(parts, masks, strict=True)]),
        )
    )


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Shard:
    """Rows that are coded. `pilot_radius` is the estimate that about PILOT_SHARE of them reach
    for a typical probe; `projection` and `residual` as in `bound`, with their extremes."""

    rows: Rows
    codes: CodedRows
    pilot_radius: float
    least_projection: float
    most_residual: float

    @classmethod
    def of(cls, rows: Rows, quantiser: Quantiser) -> "Shard":
        """Encode rows: some 30 µs each of one core."""
        codes = quantiser.encode(rows.vectors)
        typical = [
            _nth_estimate(codes, quantiser, rows.vectors[number])
            for number in range(0, len(rows), max(1, len(rows) // PILOT_PROBES))
        ]
        return cls.of_codes(rows, codes, float(np.median(typical)))

    @classmethod
    def of_codes(cls, rows: Rows, codes: CodedRows, pilot_radius: float) -> "Shard":
        """A shard whose codes are known."""
        least, most = float(codes.projection.min()), float(codes.residual.max())
        return cls(rows, codes, pilot_radius, least, most)

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, without what is mapped from files."""
        return self.rows.memory + self.codes.memory

    def remove(self, keys: Ids) -> RowNumbers:
        """Mark rows as removed, and zero their codes, and their vectors in memory; returns the
        numbers of these rows. One caller at a time."""
        numbers = self.rows.remove(keys)
        self.codes.scan.forget(numbers)
        return numbers


def _nth_estimate(codes: CodedRows, quantiser: Quantiser, vector: FloatArray) -> float:
    probe = quantiser.rotate(vector)
    _, estimates = codes.scan.within(probe, probe.lowest + probe.step)
    place = max(0, int(len(estimates) * (1 - PILOT_SHARE)) - 1)
    return float(np.partition(estimates, place)[place]) if len(estimates) else 0.0
