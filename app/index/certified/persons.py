"""The persons of a search: a filter's, and the nearest found so far."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.index.certified.codes import RowNumbers
from app.index.port import Hit, Ids
from app.locks import new_lock
from app.types import FloatArray

# From the lowest key to the highest: with more of them they would cost more than they save.
MOST_FLAGS = 1 << 27
FEW = 256  # rows that are sorted as fast as the best of them are found


class PersonSet:
    """Persons (n,), in ascending order of their keys: a flag for every key between, so that a row
    costs one look."""

    def __init__(self, persons: Ids) -> None:
        self._persons = persons
        self._lowest = int(persons[0]) if len(persons) else 0
        span = int(persons[-1]) - self._lowest + 1 if len(persons) else 0
        self._flags: NDArray[np.bool_] | None = None
        if span <= MOST_FLAGS:
            # The first and the last are of every key below and beyond.
            self._flags = np.zeros(span + 2, np.bool_)
            self._flags[persons - self._lowest + 1] = True

    def rows_of(self, persons: Ids) -> RowNumbers:
        """The numbers of those rows, given by their persons (n,), that are of one of these."""
        if len(self._persons) == 1:
            return np.flatnonzero(persons == self._lowest)
        if self._flags is None:
            return np.flatnonzero(np.isin(persons, self._persons))
        return np.flatnonzero(self._flags.take(persons - (self._lowest - 1), mode="clip"))


class Collector(Protocol):
    """Records the rows that a search has scored. Thread-safe."""

    @property
    def floor(self) -> float:
        """What a row must reach to matter."""
        ...

    def offer(self, similarities: FloatArray, persons: Ids, keys: Ids) -> None:
        """Record rows (n,): their similarities, persons and template keys."""
        ...


class BestPersons:
    """Keeps the `top_k` most similar persons of all rows offered; each counts once, with the best
    template. Equal similarities are put in the order of template keys. Thread-safe."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        self._similarities = np.empty(0, np.float32)
        self._persons = np.empty(0, np.int64)
        self._keys = np.empty(0, np.int64)
        self._floor = -np.inf
        self._lock = new_lock("search.best")

    @property
    def floor(self) -> float:
        """What a row must reach to matter: the last place's, −∞ while places are free."""
        return self._floor

    @property
    def persons(self) -> Ids:
        """The persons, best first."""
        return self._persons

    def offer(self, similarities: FloatArray, persons: Ids, keys: Ids) -> None:
        """Record rows (n,): their similarities, persons and template keys."""
        able = (similarities >= self._floor).nonzero()[0]
        if not len(able):
            return
        wanted = 4 * self._top_k + 32
        while len(able) > max(wanted, FEW):
            best = able[np.argpartition(-similarities[able], wanted)[:wanted]]
            if len(np.unique(persons[best])) >= self._top_k:
                # Rows equal to the last of them may have the smaller key.
                able = able[similarities[able] >= similarities[best].min()]
                break
            wanted *= 8
        self._merge(similarities[able], persons[able], keys[able])

    def _merge(self, similarities: FloatArray, persons: Ids, keys: Ids) -> None:
        with self._lock:
            similarities = np.concatenate([self._similarities, similarities])
            persons = np.concatenate([self._persons, persons])
            keys = np.concatenate([self._keys, keys])
            order = np.lexsort((keys, -similarities))
            # The first row of each person, in a loop: it soon has enough of them.
            first: dict[int, int] = {}
            for row, person in zip(order.tolist(), persons[order].tolist(), strict=True):
                if first.setdefault(person, row) == row and len(first) == self._top_k:
                    break
            kept = list(first.values())
            self._similarities, self._persons, self._keys = (
                similarities[kept], persons[kept], keys[kept],
            )  # fmt: skip
            if len(kept) == self._top_k:
                self._floor = float(self._similarities[-1])

    def hits(self) -> list[Hit]:
        """The persons, best first."""
        similarities = np.clip(self._similarities, -1.0, 1.0).tolist()
        rows = zip(self._persons.tolist(), self._keys.tolist(), similarities, strict=True)
        return [Hit(person, key, similarity) for person, key, similarity in rows]


class PersonsAbove:
    """Keeps every person one of whose rows reaches a floor that is fixed, with the highest score.
    Thread-safe."""

    def __init__(self, floor: float) -> None:
        self.floor = floor
        self._similarities = np.empty(0, np.float32)
        self._persons = np.empty(0, np.int64)
        self._lock = new_lock("search.above")

    def offer(self, similarities: FloatArray, persons: Ids, keys: Ids) -> None:  # noqa: ARG002
        """Record rows (n,): their similarities and persons."""
        able = similarities >= self.floor
        if not able.any():
            return
        with self._lock:
            similarities = np.concatenate([self._similarities, similarities[able]])
            persons = np.concatenate([self._persons, persons[able]])
            order = np.lexsort((-similarities, persons))
            self._persons, first = np.unique(persons[order], return_index=True)
            self._similarities = similarities[order[first]]

    @property
    def found(self) -> tuple[Ids, FloatArray]:
        """The persons (n,) in ascending order of keys, and their highest scores."""
        return self._persons, self._similarities
