"""Rows of the index: parallel arrays and their exact similarities to a probe; the newest rows,
appended and scored one by one; and when rows change their form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from app.index.certified.codes import RowNumbers
from app.index.certified.persons import Collector
from app.index.comparator import Probe
from app.index.port import Ids, Templates
from app.types import FloatArray

Flags = NDArray[np.bool_]
GATHERED = 512  # rows that a core's cache has room for


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

    def copy_of(self, mask: Flags) -> "Rows":
        """A copy in memory of the rows that the mask (n,) names."""
        return Rows(self.keys[mask], self.persons[mask], self.vectors[mask], self.alive[mask])

    def templates(self, mask: Flags) -> Templates:
        """A copy of the rows that the mask (n,) names."""
        return Templates(self.keys[mask], self.persons[mask], self.vectors[mask])

    def find(self, keys: Ids) -> RowNumbers:
        """The numbers of those rows that hold one of the keys."""
        places = np.searchsorted(self.keys, keys)
        places = places[places < len(self.keys)]
        found: RowNumbers = places[np.isin(self.keys[places], keys)]
        return np.unique(found)

    def remaining(self) -> RowNumbers:
        """The numbers of the rows that are not removed."""
        # Of a copy: NumPy counts the flags before it lists them, and where some are removed in
        # between, what it lists ends with any numbers.
        return np.flatnonzero(self.alive.copy())

    def score_all(self, probe: Probe, best: Collector) -> None:
        """Offer every row's exact score with the probe."""
        # Held while C reads them: a file may take their place.
        vectors = self.vectors
        self.offer(_scores(probe, vectors), best)

    def offer(self, similarities: FloatArray, best: Collector) -> None:
        """Offer scores (n,) of all rows; removed rows are ignored."""
        if not self.alive.all():
            living = self.remaining()
            best.offer(similarities[living], self.persons[living], self.keys[living])
        else:
            best.offer(similarities, self.persons, self.keys)

    def score(self, probe: Probe, numbers: RowNumbers, best: Collector) -> None:
        """Offer the exact scores of some rows, if they matter."""
        scores = self.scores_of(probe, numbers)
        able = (scores >= best.floor).nonzero()[0]  # few of them, mostly
        able = able[self.alive[numbers[able]]]
        numbers = numbers[able]
        best.offer(scores[able], self.persons[numbers], self.keys[numbers])

    def scores_of(self, probe: Probe, numbers: RowNumbers) -> FloatArray:
        """The exact scores (n,) of some rows."""
        scores = np.empty(len(numbers), np.float32)
        vectors = self.vectors
        # Copied first: rows that lie apart are copied three times as fast as they are multiplied.
        gathered = np.empty((min(len(numbers), GATHERED), vectors.shape[1]), np.float32)
        for start in range(0, len(numbers), GATHERED):
            some = numbers[start : start + GATHERED]
            part = gathered[: len(some)]
            vectors.take(some, axis=0, out=part, mode="clip")  # without a copy of `out`
            scores[start : start + GATHERED] = _scores(probe, part)
        return scores


def _scores(probe: Probe, vectors: FloatArray) -> FloatArray:
    """The exact scores (n,) of contiguous vectors (n, d)."""
    scores = _products(probe.vector, vectors)
    for part in probe.lowerings:
        scores -= part.of(_products(part.vector, vectors))
    return scores


def _products(vector: FloatArray, vectors: FloatArray) -> FloatArray:
    """The inner products (n,) of contiguous vectors (n, d) with one (d,)."""
    products = np.empty(len(vectors), np.float32)
    if len(vectors):
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(products), faiss.swig_ptr(vector), faiss.swig_ptr(vectors),
            len(vector), len(vectors),
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


FIRST_CAPACITY = 8  # rows that a write buffer has memory for at first
ROW_BYTES = 100  # of a row's entry in the dictionary


@dataclass(frozen=True, slots=True)
class IndexShape:
    """When rows change their form. A write buffer of `encode_at` rows becomes a small shard,
    `merge_at` small shards a large one, and a shard of whose rows `dead_share` are gone is
    rewritten."""

    encode_at: int = 16_384
    merge_at: int = 8
    dead_share: float = 0.2

    @property
    def large(self) -> int:
        """Rows of a large shard."""
        return self.encode_at * self.merge_at

    @property
    def least_kept(self) -> int:
        """Rows of an index that is worth a snapshot: fewer are read from the database as fast."""
        return max(1, self.encode_at // 16)


class WriteBuffer:
    """Rows in the order they came. One writer at a time; readers take `rows`, a view that later
    additions do not change."""

    def __init__(self, dimension: int, capacity: int = FIRST_CAPACITY) -> None:
        self._dimension = dimension
        self._row_of: dict[int, int] = {}
        self._allocated = self._allocate(capacity)
        self.rows = self._allocated.first(0)

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, about."""
        return self._allocated.memory + ROW_BYTES * len(self._row_of)

    def __contains__(self, key: int) -> bool:
        return key in self._row_of

    def append(self, templates: Templates) -> None:
        """Add rows whose keys are not here yet."""
        count, new = len(self.rows), len(templates.keys)
        if count + new > len(self._allocated):
            self._grow(count + new)
        place = slice(count, count + new)
        self._allocated.keys[place] = templates.keys
        self._allocated.persons[place] = templates.person_keys
        self._allocated.vectors[place] = templates.vectors
        self._allocated.alive[place] = True
        self._row_of.update(zip(templates.keys.tolist(), range(count, count + new), strict=True))
        self.rows = self._allocated.first(count + new)

    def remove(self, keys: Ids) -> Ids:
        """Mark rows as removed and zero their vectors; returns their persons."""
        numbers = [self._row_of[key] for key in keys.tolist() if key in self._row_of]
        numbers = [number for number in dict.fromkeys(numbers) if self._allocated.alive[number]]
        self._allocated.alive[numbers] = False
        self._allocated.vectors[numbers] = 0
        persons: Ids = self._allocated.persons[numbers]
        return persons

    @property
    def dead(self) -> int:
        """The number of removed rows that still take memory."""
        return int((~self.rows.alive).sum())

    def after(self, first: int) -> "WriteBuffer":
        """A new one of the remaining rows after the first so many."""
        rest = WriteBuffer(self._dimension, max(FIRST_CAPACITY, 2 * (len(self.rows) - first)))
        later = self.rows.alive.copy()
        later[:first] = False
        rest.append(self.rows.templates(later))
        return rest

    def _grow(self, needed: int) -> None:
        old = self._allocated
        self._allocated = self._allocate(max(needed, 2 * len(old)))
        self._allocated.keys[: len(old)] = old.keys
        self._allocated.persons[: len(old)] = old.persons
        self._allocated.vectors[: len(old)] = old.vectors
        self._allocated.alive[: len(old)] = old.alive

    def _allocate(self, capacity: int) -> Rows:
        # Not `empty`: memory that was used before may still hold what was deleted.
        return Rows(
            np.zeros(capacity, np.int64),
            np.zeros(capacity, np.int64),
            np.zeros((capacity, self._dimension), np.float32),
            np.zeros(capacity, np.bool_),
        )
