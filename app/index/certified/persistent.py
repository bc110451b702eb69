"""The certified index behind the search port: in memory, with a snapshot on disk."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.index.certified.counts import PersonCounts
from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import Rows, living
from app.index.certified.snapshots.files import SnapshotError
from app.index.certified.snapshots.folder import Captured, SnapshotFolder
from app.index.certified.snapshots.reading import Restored
from app.index.port import (
    GallerySize,
    Ids,
    IndexUsage,
    Position,
    Templates,
)
from app.locks import new_lock
from app.telemetry.logs import log


@dataclass(frozen=True, slots=True)
class IndexAtPosition:
    """An index and how far it has come. Replaced as a whole."""

    index: CertifiedIndex
    position: Position | None


class IndexState:
    """What an index and its saved copy share."""

    def __init__(self, new_index: Callable[[], CertifiedIndex]) -> None:
        self.new_index = new_index
        self.reached = IndexAtPosition(new_index(), None)
        self.to_erase: list[Ids] = []  # removed since the snapshot's rows were last erased
        self.saved_revision = -1
        self.applying = new_lock("index.applying")

    def replace(self, index: CertifiedIndex, position: Position, saved_revision: int) -> None:
        """Another index takes the place of the present one."""
        self.saved_revision = saved_revision
        old = self.reached.index
        self.reached = IndexAtPosition(index, position)
        old.close()


class PersistentIndex:
    """`app.index.port.SearchIndex` over a certified index and, where there is a folder for it, a
    snapshot."""

    def __init__(self, new_index: Callable[[], CertifiedIndex], snapshot: SnapshotFolder | None):
        self._snapshot = snapshot
        self._state = IndexState(new_index)
        self.saved_copy = IndexSnapshot(self._state, snapshot)

    @property
    def searcher(self) -> CertifiedIndex:
        """The index in memory."""
        return self._state.reached.index

    @property
    def position(self) -> Position | None:
        """How far the index has come; None before it was first loaded or built."""
        return self._state.reached.position

    @property
    def usage(self) -> IndexUsage:
        """What it takes; no memory before it was first loaded or built."""
        reached = self._state.reached
        memory = 0 if reached.position is None else reached.index.memory
        return IndexUsage(memory, reached.index.costs)

    def build(self, pages: Iterable[Templates], position: Position) -> None:
        """Start from all templates, which take the place of what is held once all are read."""
        index = self._state.new_index()
        for page in pages:
            index.add(page)
            if len(index.state.write_buffer.rows) >= index.shape.large:
                index.maintain()
        while index.maintain():
            pass
        self._state.replace(index, position, saved_revision=-1)

    def apply(self, added: Templates, removed: Ids, position: Position) -> None:
        """Add and remove templates, and move to a later position."""
        state = self._state
        with state.applying:
            index = state.reached.index
            index.add(added)
            index.remove(removed)
            if len(removed) and self._snapshot is not None:
                state.to_erase.append(removed)
            state.reached = IndexAtPosition(index, position)

    def maintain(self) -> bool:
        """Encode, merge or compact what is due; returns whether something was."""
        if self._state.reached.index.maintain():
            return True
        if self._snapshot is not None:
            self._snapshot.copy_lost_files()
        return False

    def content(self) -> "RowsContent":
        """What the index holds."""
        reached = self._state.reached
        assert reached.position is not None, "the index was loaded or built"
        return RowsContent(reached.index.parts(), reached.position)

    def close(self) -> bool:
        """Free what is on a device, unless something is still to be erased."""
        if not self._state.to_erase:
            self._state.reached.index.close()
        return not self._state.to_erase


class IndexSnapshot:
    """`app.index.port.SavedCopy` of a certified index: its snapshot, or none where there is no
    folder for it."""

    def __init__(self, state: IndexState, snapshot: SnapshotFolder | None) -> None:
        self._state = state
        self._snapshot = snapshot
        self._captured_revision = -1
        self._erasing = new_lock("index.erasing")

    def load(self, is_known: Callable[[Position], bool]) -> bool:
        """Start from the snapshot, if there is one and the database still knows its position."""
        if self._snapshot is None:
            return False
        self._snapshot.own()
        restored = _usable(self._snapshot.load, is_known)
        if restored is None:
            return False
        index = self._state.new_index()
        index.restore(restored.quantiser, restored.shards, restored.write_buffer)
        self._snapshot.accept()
        self._state.replace(index, restored.position, restored.position.revision)
        return True

    def may_save(self) -> bool:
        """Whether this process may change the snapshot. Tries to get the right."""
        return self._snapshot is not None and self._snapshot.own()

    @property
    def unsaved(self) -> bool:
        """Whether this process should save a snapshot."""
        position = self._state.reached.position
        if position is None or self._snapshot is None or not self._snapshot.owned:
            return False
        return position.revision != self._state.saved_revision or self._snapshot.behind

    def save(self) -> None:
        """Save a snapshot, or none of a small index. Raises OSError; then the last one stays."""
        reached, snapshot = self._state.reached, self._snapshot
        if snapshot is None or reached.position is None:
            return
        if reached.index.size < reached.index.shape.least_kept:
            snapshot.clear()
            self._state.saved_revision = reached.position.revision
        elif snapshot.save(self._capture):
            self._state.saved_revision = self._captured_revision

    def _capture(self) -> Captured:
        with self._state.applying:
            index, position = self._state.reached.index, self._state.reached.position
            assert position is not None, "there is an index to keep"
            state = index.state
            write_buffer = living([state.write_buffer.rows], [state.write_buffer.rows.alive])
            self._captured_revision = position.revision
            return Captured(index.quantiser, state.shards, write_buffer, position)

    def erase(self) -> None:
        """Take what was removed out of the snapshot; maintenance tries again where that fails."""
        state = self._state
        if self._snapshot is None:
            return
        if not (state.to_erase or self._snapshot.behind or self._erasing.locked()):
            return
        with self._erasing:  # a thread that waits here finds its rows erased
            with state.applying:
                waiting, state.to_erase = state.to_erase, []
            try:
                self._snapshot.erase(np.concatenate([np.empty(0, np.int64), *waiting]))
            except BaseException as error:
                with state.applying:
                    state.to_erase += waiting
                if not isinstance(error, OSError):
                    raise
                log(logging.WARNING, "deleted rows stay in the index snapshot for now", error)

    @property
    def erased(self) -> bool:
        """Whether the snapshot's files hold no row that was removed."""
        if self._snapshot is None:
            return True
        if not self._snapshot.has_rows():
            return not self._written_elsewhere
        return self._snapshot.owned and not self._snapshot.behind and not self._state.to_erase

    @property
    def left_to_erase(self) -> bool:
        """Whether rows that were removed may be in files that this process may change."""
        if self._snapshot is None or not self._snapshot.owned:
            return False
        return bool(self._state.to_erase) or (self._snapshot.behind and self._snapshot.has_rows())

    @property
    def _written_elsewhere(self) -> bool:
        """Whether another process may be writing the first snapshot of this index."""
        reached, snapshot = self._state.reached, self._snapshot
        if reached.position is None or snapshot is None or snapshot.own():
            return False
        return reached.index.size >= reached.index.shape.least_kept

    @property
    def settled(self) -> bool:
        """Whether nothing is to be erased, saved, or copied from files that may go."""
        if self._state.to_erase or self.unsaved:
            return False
        return self._snapshot is None or not self._snapshot.may_lose_files

    def content(self, is_known: Callable[[Position], bool]) -> "RowsContent | None":
        """What the snapshot holds; None where `load` would not start from it."""
        if self._snapshot is None:
            return None
        restored = _usable(self._snapshot.read, is_known)
        if restored is None:
            return None
        parts = [*(shard.rows for shard in restored.shards), restored.write_buffer]
        return RowsContent(parts, restored.position)

    def discard(self) -> None:
        """The collection is deleted: remove its snapshot, and never save one again."""
        self._state.reached.index.close()
        if self._snapshot is not None:
            self._snapshot.discard()


def _usable(
    load: Callable[[], Restored | None], is_known: Callable[[Position], bool]
) -> Restored | None:
    try:
        restored = load()
    except SnapshotError as error:
        log(logging.WARNING, "the index snapshot cannot be used", reason=str(error))
        return None
    if restored is None:
        return None
    if not is_known(restored.position):
        log(logging.WARNING, "the index snapshot is at a revision that the database's change "
            "log does not have: it is too old, or of another history")  # fmt: skip
        return None
    return restored


ROWS_AT_ONCE = 8_192


class RowsContent:
    """`app.index.port.IndexContent` over several parts of rows."""

    def __init__(self, parts: Sequence[Rows], position: Position) -> None:
        self.position = position
        self._parts = parts
        living = [part.remaining() for part in parts]
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
