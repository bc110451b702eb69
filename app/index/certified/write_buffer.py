"""The newest rows, appended and scored one by one, and when rows change their form."""

from dataclasses import dataclass

import numpy as np

from app.index.certified.rows import Rows, Shard
from app.index.port import Ids, Templates

FIRST_ROOM = 8
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

    @property
    def dead(self) -> int:
        """The number of removed rows that still take memory."""
        return int((~self.rows.alive).sum())

    def after(self, first: int) -> "WriteBuffer":
        """A new one of the remaining rows after the first so many."""
        rest = WriteBuffer(self._dimension, max(FIRST_ROOM, 2 * (len(self.rows) - first)))
        later = self.rows.alive.copy()
        later[:first] = False
        rest.append(self.rows.templates(later))
        return rest

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


@dataclass(frozen=True, slots=True)
class State:
    """What a search looks at. Replaced as a whole, so that a search keeps what it began with."""

    shards: tuple[Shard, ...]
    write_buffer: WriteBuffer

    @property
    def parts(self) -> list[Rows]:
        """All rows, removed ones too: those of every shard, and the write buffer's."""
        return [*(shard.rows for shard in self.shards), self.write_buffer.rows]
