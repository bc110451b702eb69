"""One process's copy of a collection: the index, the revision it has reached, and its snapshot."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.errors import (
    CollectionNotFound,
    EmbeddingSpaceMismatch,
    RevisionPruned,
    StoreUnavailable,
)
from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import living
from app.index.certified.search import SearchCounts
from app.index.port import Ids
from app.index.snapshots.files import SnapshotError
from app.index.snapshots.folder import Captured, Restored, SnapshotFolder
from app.locks import new_lock
from app.store.port import TemplateStore
from app.store.records import CollectionRecord, Erasure
from app.telemetry.logs import log

PAGE = 8_192  # templates read in one transaction
SAVE_AFTER_S = 60.0  # a snapshot is at most so much older than what it could hold


@dataclass(frozen=True, slots=True)
class IndexAtRevision:
    """An index and the revision, with its stamp, that it stands at. Replaced as a whole."""

    index: CertifiedIndex
    revision: int
    stamp: str

    def is_at(self, record: CollectionRecord) -> bool:
        return (self.revision, self.stamp) == (record.revision, record.stamp)


class Replica:
    """Follows one collection. `current` is what searches use; maintenance is for a thread of its
    own."""

    def __init__(
        self,
        store: TemplateStore,
        new_index: Callable[[int], CertifiedIndex],
        snapshot: SnapshotFolder | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._new_index = new_index
        self._snapshot = snapshot
        self._clock = clock
        self._reached: IndexAtRevision | None = None
        self._record: CollectionRecord | None = None  # as it was when the index was last updated
        self._maintained: IndexAtRevision | None = None  # what the last maintenance has seen
        self._to_erase: list[Ids] = []
        self._saved_revision = self._captured_revision = -1
        self._saved_at = -np.inf
        self._lock = new_lock("replica.following")
        self._erasing = new_lock("replica.erasing")

    @property
    def index(self) -> CertifiedIndex | None:
        """The index as far as it has come; None before it was first asked for."""
        return None if self._reached is None else self._reached.index

    @property
    def memory(self) -> int:
        """Bytes of memory that the index takes, about."""
        return 0 if self._reached is None else self._reached.index.memory

    @property
    def costs(self) -> SearchCounts:
        """What searches of the index cost so far."""
        return SearchCounts() if self._reached is None else self._reached.index.costs

    @property
    def settled(self) -> bool:
        """Whether maintenance has nothing to do before the next change."""
        reached = self._reached
        if reached is not self._maintained or self._to_erase or self._unsaved(reached):
            return False
        return self._snapshot is None or not self._snapshot.may_lose_files

    def _unsaved(self, reached: IndexAtRevision | None) -> bool:
        """Whether this process should save a snapshot."""
        if reached is None or self._snapshot is None or not self._snapshot.owned:
            return False
        return reached.revision != self._saved_revision or self._snapshot.behind

    def is_at(self, revision: int, stamp: str) -> bool:
        """Whether the index has reached that revision, and no later one."""
        reached = self._reached
        return reached is not None and (reached.revision, reached.stamp) == (revision, stamp)

    def current(self, record: CollectionRecord) -> CertifiedIndex:
        """The index, at the record's revision or a later one."""
        reached = self._reached
        if reached is None or not reached.is_at(record):
            with self._lock:
                reached = self._reached
                if reached is None or not reached.is_at(record):
                    reached = self._reached = self._follow(record, reached)
                    self._record = record
        return reached.index

    def erase(self, record: CollectionRecord) -> None:
        """Update the index to the record's revision, and erase the rows removed by this or another
        thread from the snapshot."""
        self.current(record)
        self._erase()

    @property
    def erased(self) -> Erasure:
        """Whether the snapshot's files hold no row that was removed."""
        if self._snapshot is None:
            return Erasure.DONE
        if not self._snapshot.has_rows():
            return Erasure.PENDING if self._written_elsewhere else Erasure.DONE
        known = self._snapshot.owned and not self._snapshot.behind
        return Erasure.DONE if known and not self._to_erase else Erasure.PENDING

    @property
    def _written_elsewhere(self) -> bool:
        """Whether another process may be writing the first snapshot of this index."""
        reached, snapshot = self._reached, self._snapshot
        if reached is None or snapshot is None or snapshot.own():
            return False
        return reached.index.size >= reached.index.shape.least_kept

    def _follow(self, record: CollectionRecord, reached: IndexAtRevision | None) -> IndexAtRevision:
        if reached is not None and not self._continues(record, reached):
            log(logging.WARNING,
                "the database's log of changes does not hold the revision of "
                "the index (the database was replaced, or this process slept "
                "for long); the index is rebuilt")  # fmt: skip
            reached = None
            self.save_soon()
        if reached is None:
            if self._snapshot is not None:
                self._snapshot.own()
            reached = self._restore(record) or self._build(record)
        try:
            changes = self._store.changes_since(record, reached.revision)
        except RevisionPruned:  # in this very moment, or the record itself is as old as that
            return self._follow(self._again(record), None)
        if changes.revision == reached.revision:
            return reached
        reached.index.add(changes.added)
        reached.index.remove(changes.removed)
        if len(changes.removed) and self._snapshot is not None:
            self._to_erase.append(changes.removed)
        return IndexAtRevision(reached.index, changes.revision, changes.stamp)

    def _again(self, record: CollectionRecord) -> CollectionRecord:
        """The collection as it is now. Raises CollectionNotFound or EmbeddingSpaceMismatch."""
        now = self._store.collection(record.name)
        if now.key != record.key:
            raise CollectionNotFound(f"The collection '{record.name}' was deleted meanwhile.")
        return now.require_space(record.embedding_space)

    def _continues(self, record: CollectionRecord, reached: IndexAtRevision) -> bool:
        """Whether the database's history still holds the revision that was reached."""
        return self._store.stamp_at(record, reached.revision) == reached.stamp

    def _erase(self) -> None:
        """Take what was removed out of the snapshot; maintenance tries again where that fails."""
        if self._snapshot is None:
            return
        if not (self._to_erase or self._snapshot.behind or self._erasing.locked()):
            return
        with self._erasing:  # a thread that waits here finds its rows erased
            with self._lock:
                waiting, self._to_erase = self._to_erase, []
            try:
                self._snapshot.erase(np.concatenate([np.empty(0, np.int64), *waiting]))
            except OSError as error:
                with self._lock:
                    self._to_erase += waiting
                log(logging.WARNING, "deleted rows stay in the index snapshot for now", error)

    # --- start -------------------------------------------------------------------------------

    def snapshot_on_disk(self, record: CollectionRecord) -> Restored | None:
        """The snapshot that a start would load; None if it would read the database."""
        return None if self._snapshot is None else self._usable(record, self._snapshot.reader())

    def _usable(self, record: CollectionRecord, snapshot: SnapshotFolder) -> Restored | None:
        try:
            restored = snapshot.load()
        except SnapshotError as error:
            log(logging.WARNING, "the index snapshot cannot be used", reason=str(error))
            return None
        if restored is None:
            return None
        if self._store.stamp_at(record, restored.revision) != restored.stamp:
            log(logging.WARNING, "the index snapshot stands at a revision that the database's log "
                "of changes does not hold: it is too old, or of another history")  # fmt: skip
            return None
        return restored

    def _restore(self, record: CollectionRecord) -> IndexAtRevision | None:
        if self._snapshot is None:
            return None
        started = self._clock()
        restored = self._usable(record, self._snapshot)
        if restored is None:
            return None
        index = self._new_index(record.dimension)
        index.restore(restored.quantiser, restored.shards, restored.write_buffer)
        self._snapshot.accept()
        self._saved_revision, self._saved_at = restored.revision, self._clock()
        seconds = round(self._clock() - started, 2)
        log(logging.INFO, "index read from its snapshot", templates=index.size, seconds=seconds)
        return IndexAtRevision(index, restored.revision, restored.stamp)

    def _build(self, record: CollectionRecord) -> IndexAtRevision:
        """From the database, page by page: what changes meanwhile comes with the next changes."""
        started = self._clock()
        index = self._new_index(record.dimension)
        last, logged = 0, started
        while len((page := self._store.templates_after(record, last, PAGE)).keys):
            index.add(page)
            last = int(page.keys[-1])
            if len(index.state.write_buffer.rows) >= index.shape.large:
                index.maintain()
            if self._clock() - logged > 5:
                logged = self._clock()
                log(logging.INFO, "building the index", templates=index.size)
        while index.maintain():
            pass
        if index.size:
            seconds = round(self._clock() - started, 2)
            log(logging.INFO, "index built from the database", templates=index.size,
                seconds=seconds)  # fmt: skip
        return IndexAtRevision(index, record.revision, record.stamp)

    # --- maintenance ---------------------------------------------------------------------------

    def maintain(self) -> None:
        """Seal, merge and compact what is due, and keep a snapshot."""
        reached = self._reached
        if reached is None:
            return
        changed = False
        while reached.index.maintain():
            changed = True
        self._erase()
        if self._snapshot is not None:
            self._snapshot.copy_lost_files()
        due = self._clock() - self._saved_at > SAVE_AFTER_S
        if changed or (due and self._unsaved(reached)):
            self.save()
        self._maintained = reached

    def save_soon(self) -> None:
        """Make the next round of maintenance save a snapshot."""
        self._saved_revision, self._saved_at = -1, -np.inf
        self._maintained = None

    def save(self) -> None:
        """Update the index to the database, then save a snapshot of it, or none of a small index.
        If that fails, the last snapshot stays. Nothing is saved of a deleted collection."""
        snapshot = self._snapshot
        if self._reached is None or snapshot is None or not snapshot.own():
            return
        try:
            # What the owner before this process erased may still be in this index.
            reached = self._updated()
            if reached.index.size < reached.index.shape.least_kept:
                snapshot.clear()
                self._saved_revision = reached.revision
            elif snapshot.save(self._capture):
                self._saved_revision = self._captured_revision
        except (CollectionNotFound, EmbeddingSpaceMismatch):
            self.discard()
        except (OSError, StoreUnavailable) as error:
            log(logging.WARNING, "the index snapshot was not saved", error)
        self._saved_at = self._clock()

    def _updated(self) -> IndexAtRevision:
        """The index at the collection's present revision. Raises CollectionNotFound,
        EmbeddingSpaceMismatch or StoreUnavailable."""
        assert self._record is not None, "the index was opened"
        record = self._store.collection_by_key(self._record.key)
        self.current(record.require_space(self._record.embedding_space))
        assert self._reached is not None, "it was just updated"
        return self._reached

    def _capture(self) -> Captured:
        with self._lock:
            reached = self._reached
            assert reached is not None, "there is an index to keep"
            state = reached.index.state
            write_buffer = living([state.write_buffer.rows], [state.write_buffer.rows.alive])
            self._captured_revision = reached.revision
            return Captured(
                reached.index.quantiser, state.shards, write_buffer, reached.revision, reached.stamp
            )

    def close(self) -> bool:
        """Save a last snapshot if something changed; returns whether nothing is left to erase."""
        if self._reached is not None:
            self._erase()
            if self._unsaved(self._reached):
                self.save()
            if not self._to_erase:
                self._reached.index.close()
        return not self._to_erase

    def discard(self) -> None:
        """The collection is gone: remove its snapshot, and keep none any more."""
        if self._reached is not None:
            self._reached.index.close()
        if self._snapshot is not None:
            self._snapshot.discard()
