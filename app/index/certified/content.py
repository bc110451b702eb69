"""The rows of an index or a snapshot, for an audit."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.index.certified.counts import PersonCounts
from app.index.certified.rows import Rows
from app.index.port import GallerySize, Ids, Position, Templates

ROWS_AT_ONCE = 8_192


class RowsContent:
    """`app.index.port.IndexContent` over several parts of rows."""

    def __init__(self, parts: Sequence[Rows], position: Position) -> None:
        self.position = position
        self._parts = parts
        living = [np.flatnonzero(part.alive) for part in parts]
        keys = np.concatenate([part.keys[rows] for part, rows in zip(parts, living, strict=True)])
        order = np.argsort(keys, kind="stable")
        self.keys: Ids = keys[order]
        self._rows = np.concatenate(living)[order]
        self._part = np.repeat(np.arange(len(parts)), [len(rows) for rows in living])[order]

    def templates(self, places: Ids) -> Templates:
        """The templates at these places of `keys`."""
        dimension = self._parts[0].dimension
        persons: Ids = np.empty(len(places), np.int64)
        vectors = np.empty((len(places), dimension), np.float32)
        for number, part in enumerate(self._parts):
            mine = self._part[places] == number
            rows = self._rows[places[mine]]
            persons[mine], vectors[mine] = part.persons[rows], part.vectors[rows]
        return Templates(self.keys[places], persons, vectors)

    def extent(self) -> GallerySize:
        """How many people and templates there are, counted row by row."""
        return PersonCounts.of(list(self._parts)).size

    def unerased(self) -> int:
        """The number of removed rows whose vector is still there."""
        return sum(_unerased(part, np.flatnonzero(~part.alive)) for part in self._parts)


def _unerased(rows: Rows, dead: NDArray[np.intp]) -> int:
    starts = range(0, len(dead), ROWS_AT_ONCE)
    return sum(int(rows.vectors[dead[s : s + ROWS_AT_ONCE]].any(axis=1).sum()) for s in starts)
