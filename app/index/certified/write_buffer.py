"""The newest rows: appended one after another, every one scored exactly."""

import numpy as np

from app.index.certified.rows import Rows
from app.index.port import Ids, Templates

FIRST_ROOM = 8
ROW_BYTES = 100  # of a row's entry in the dictionary


class WriteBuffer:
    """Rows in the order they came. One writer at a time; readers take `rows`, a view that later
    additions do not change."""

    def __init__(self, dimension: int, room: int = FIRST_ROOM) -> None:
        self._dimension = dimension
        self._row_of: dict[int, int] = {}
        self._room = self._make_room(room)
        self.rows = self._room.first(0)

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, about."""
        return self._room.memory + ROW_BYTES * len(self._row_of)

    def __contains__(self, key: int) -> bool:
        return key in self._row_of

    def append(self, templates: Templates) -> None:
        """Add rows whose keys are not here yet."""
        count, new = len(self.rows), len(templates.keys)
        if count + new > len(self._room):
            self._grow(count + new)
        place = slice(count, count + new)
        self._room.keys[place] = templates.keys
        self._room.persons[place] = templates.person_keys
        self._room.vectors[place] = templates.vectors
        self._room.alive[place] = True
        self._row_of.update(zip(templates.keys.tolist(), range(count, count + new), strict=True))
        self.rows = self._room.first(count + new)

    def remove(self, keys: Ids) -> Ids:
        """Mark rows as removed and zero their vectors; returns their persons."""
        numbers = [self._row_of[key] for key in keys.tolist() if key in self._row_of]
        numbers = [number for number in dict.fromkeys(numbers) if self._room.alive[number]]
        self._room.alive[numbers] = False
        self._room.vectors[numbers] = 0
        persons: Ids = self._room.persons[numbers]
        return persons

    def _grow(self, needed: int) -> None:
        old = self._room
        self._room = self._make_room(max(needed, 2 * len(old)))
        self._room.keys[: len(old)] = old.keys
        self._room.persons[: len(old)] = old.persons
        self._room.vectors[: len(old)] = old.vectors
        self._room.alive[: len(old)] = old.alive

    def _make_room(self, room: int) -> Rows:
        # Not `empty`: memory that was used before may still hold what was deleted.
        return Rows(
            np.zeros(room, np.int64),
            np.zeros(room, np.int64),
            np.zeros((room, self._dimension), np.float32),
            np.zeros(room, np.bool_),
        )
