"""The likeness of the people of an index, found in its rows.

The people who are compared are nearly always the same after a change, so the number is kept until
one of them is added or removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.index.certified.persons import PersonSet
from app.index.certified.rows import Rows
from app.index.comparator import Comparator
from app.index.likeness import FILTERED_CHOICE, FILTERED_PERSONS, PERSONS, digests_of, likeness_of
from app.index.port import Ids
from app.types import FloatArray


@dataclass(frozen=True, slots=True)
class Sample:
    """Templates of the people with the smallest digests: `keys` (n,), ascending, and their
    likeness, None where there are too few. `limit` is the largest digest that belongs to it."""

    keys: Ids
    limit: int
    likeness: float | None

    def changes_with(self, persons: Ids, removed: Ids) -> bool:
        """Whether templates added of these persons, or removed with these keys, may change it."""
        added = len(persons) > 0 and int(digests_of(persons).min()) <= self.limit
        return added or bool(np.isin(removed, self.keys).any())


class SampleCache:
    """The sample of the comparator that was asked for last, until a change may alter it. Used
    under the index's lock."""

    def __init__(self) -> None:
        self.changes = 0  # so far
        self._sample: Sample | None = None
        self._comparator: Comparator | None = None

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes."""
        return 0 if self._sample is None else self._sample.keys.nbytes

    def of(self, comparator: Comparator) -> Sample | None:
        """The sample, if it is known."""
        return self._sample if self._comparator is comparator else None

    def keep(self, sample: Sample, comparator: Comparator, changes: int) -> None:
        """Keep a sample that was taken after so many changes, unless there were others since."""
        if changes == self.changes:
            self._sample, self._comparator = sample, comparator

    def clear(self) -> None:
        """Everything has changed."""
        self._sample, self.changes = None, self.changes + 1

    def note_change(self, persons: Ids, removed: Ids) -> None:
        """Forget the sample if templates added of these persons, or removed, may change it."""
        self.changes += 1
        if self._sample is not None and self._sample.changes_with(persons, removed):
            self._sample = None


def sample_of(parts: Sequence[Rows], comparator: Comparator) -> Sample:
    """The sample of all remaining rows."""
    found = [_smallest(part, PERSONS) for part in parts]
    keys, persons, vectors = (np.concatenate(column) for column in zip(*found, strict=True))
    first = _first_of_each(keys, persons)[:PERSONS]
    full = len(first) == PERSONS
    limit = int(digests_of(persons[first[-1:]])[0]) if full else np.iinfo(np.uint64).max
    return Sample(np.sort(keys[first]), limit, likeness_of(vectors[first], comparator))


def likeness_among(parts: Sequence[Rows], allowed: Ids, comparator: Comparator) -> float | None:
    """The likeness of some persons, in ascending order of their keys; None if too few of them have
    templates."""
    # Some may have no template.
    asked = allowed
    if len(allowed) > FILTERED_CHOICE:
        asked = allowed[np.argpartition(digests_of(allowed), FILTERED_CHOICE)]
        asked = np.sort(asked[:FILTERED_CHOICE])
    wanted = PersonSet(asked)
    found = []
    for part in parts:
        rows = wanted.rows_of(part.persons)
        rows = rows[part.alive[rows]]
        rows = rows[_first_of_each(part.keys[rows], part.persons[rows])]
        found.append((part.keys[rows], part.persons[rows], part.vectors[rows]))
    keys, persons, vectors = (np.concatenate(column) for column in zip(*found, strict=True))
    return likeness_of(vectors[_first_of_each(keys, persons)[:FILTERED_PERSONS]], comparator)


def _smallest(part: Rows, count: int) -> tuple[Ids, Ids, FloatArray]:
    """Of the `count` remaining persons of a part with the smallest digests: their rows' smallest
    keys, the persons, and the vectors."""
    rows = part.remaining()
    persons = part.persons[rows]
    digests = digests_of(persons)
    wanted = 2 * count
    while wanted < len(rows):
        some = np.argpartition(digests, wanted)[:wanted]
        # All rows of the last person have one digest: only those of smaller ones are all here.
        some = np.flatnonzero(digests < digests[some].max())
        if len(np.unique(persons[some])) >= count:
            rows, persons = rows[some], persons[some]
            break
        wanted *= 4
    rows = rows[_first_of_each(part.keys[rows], persons)[:count]]
    return part.keys[rows], part.persons[rows], part.vectors[rows]


def _first_of_each(keys: Ids, persons: Ids) -> NDArray[np.intp]:
    """The places of each person's smallest key, in ascending order of the persons' digests."""
    order = np.lexsort((keys, persons, digests_of(persons)))
    mine = persons[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = mine[1:] != mine[:-1]
    return np.asarray(order[new])
