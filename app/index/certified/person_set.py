"""Some persons of many, and which rows are theirs."""

import numpy as np
from numpy.typing import NDArray

from app.index.certified.codes import RowNumbers
from app.index.port import Ids

# From the lowest key to the highest: with more of them they would cost more than they save.
MOST_FLAGS = 1 << 27


class PersonSet:
    """Persons (n,), whose keys rise: a flag for every key between, so that a row costs one look."""

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
