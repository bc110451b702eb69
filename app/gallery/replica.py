"""Follows one collection: keeps its index at the database's revision, and a copy of it saved."""

import logging
import time
from collections.abc import Callable, Iterator

import numpy as np

from app.errors import (
    CollectionNotFound,
    EmbeddingSpaceMismatch,
    RevisionPruned,
    StoreUnavailable,
)
from app.index.port import Position, SearchIndex, Templates
from app.locks import new_lock
from app.store.records import CollectionRecord, EnrolledTogether, Erasure
from app.store.sql.changes import ChangeLog
from app.store.sql.collections import CollectionStore
from app.telemetry.logs import log

PAGE = 8_192  # templates read in one transaction
NOTHING = np.empty(0, np.int64)
SAVE_AFTER_S = 60.0  # a saved copy is at most this much behind the index


class Replica:
    """Follows one collection. `current` is what searches use; maintenance is for a thread of its
    own."""

    def __init__(
        self,
        collections: CollectionStore,
        changes: ChangeLog,
        index: SearchIndex,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index = index
        self._collections = collections
        self._changes = changes
        self._clock = clock
        self._record: CollectionRecord | None = None  # what the index is being updated to
        self._maintained: Position | None = None  # what the last maintenance has seen
        self._saved_at = -np.inf
        self._lock = new_lock("replica.following")

    @property
    def settled(self) -> bool:
        """Whether maintenance has nothing to do before the next change."""
        return self.index.position == self._maintained and self.index.saved_copy.settled

    def is_at(self, position: Position) -> bool:
        """Whether the index has reached that position, and no later one."""
        return self.index.position == position

    def current(self, record: CollectionRecord) -> SearchIndex:
        """The index, at the record's revision or a later one."""
        wanted = position_of(record)
        if self.index.position != wanted:
            with self._lock:
                self._update_to(wanted, record)
        return self.index

    def follow(self, record: CollectionRecord) -> None:
        """Update the index to the record's revision, unless another thread is updating it: what
        that does not reach is left to the next search, or to maintenance."""
        wanted = position_of(record)
        if self.index.position != wanted and self._lock.acquire(blocking=False):
            try:
                self._update_to(wanted, record)
            finally:
                self._lock.release()

    def add(self, done: EnrolledTogether) -> None:
        """`follow` what was enrolled. The database is not read if the index was at the revision
        before."""
        wanted = position_of(done.after)
        if self.index.position != wanted and self._lock.acquire(blocking=False):
            try:
                if self.index.position == position_of(done.before):
                    self._record = done.after
                    self.index.apply(done.added, NOTHING, wanted)
                else:
                    self._update_to(wanted, done.after)
            finally:
                self._lock.release()

    def _update_to(self, wanted: Position, record: CollectionRecord) -> None:
        if self.index.position != wanted:
            # First: as soon as the index has a position, another thread may save it.
            self._record = record
            self._catch_up_or_rebuild(record)

    def erase(self, record: CollectionRecord) -> None:
        """Update the index to the record's revision, and erase the templates removed by this or
        another thread from the saved copy."""
        self.current(record)
        self.index.saved_copy.erase()

    @property
    def erased(self) -> Erasure:
        """Whether the saved copy holds nothing that was removed."""
        return Erasure.DONE if self.index.saved_copy.erased else Erasure.PENDING

    def _catch_up_or_rebuild(self, record: CollectionRecord) -> None:
        reached = self.index.position
        if reached is not None:
            if self._catch_up(record, reached):
                return
            log(logging.WARNING,
                "the database's change log does not have the revision of the index "
                "(the database was replaced, or this process was suspended for a "
                "long time); the index is rebuilt")  # fmt: skip
            self.save_soon()
        # `_catch_up` fails if the log was pruned just before, or the record is older than the log.
        while not self._catch_up(record, self._load_or_build(record)):
            record = self._reread(record)

    def _catch_up(self, record: CollectionRecord, reached: Position) -> bool:
        """Apply what changed since the index's position; False where the log does not have it."""
        try:
            changes = self._changes.since(record, reached.revision, reached.stamp)
        except RevisionPruned:
            return False
        if changes.revision != reached.revision:
            position = Position(changes.revision, changes.stamp)
            self.index.apply(changes.added, changes.removed, position)
        return True

    def _reread(self, record: CollectionRecord) -> CollectionRecord:
        """The collection as it is now. Raises CollectionNotFound or EmbeddingSpaceMismatch."""
        now = self._collections.get(record.name)
        if now.key != record.key:
            raise CollectionNotFound(f"The collection '{record.name}' was deleted meanwhile.")
        return now.require_space(record.embedding_space)

    def _is_known(self, record: CollectionRecord, position: Position) -> bool:
        """Whether the database's history still has that position."""
        return self._changes.stamp_at(record, position.revision) == position.stamp

    # --- start -------------------------------------------------------------------------------

    def _load_or_build(self, record: CollectionRecord) -> Position:
        """Load or build the index; returns its position."""
        if not self._load(record):
            self._build(record)
        assert self.index.position is not None, "it was loaded or built"
        return self.index.position

    def _load(self, record: CollectionRecord) -> bool:
        started = self._clock()
        if not self.index.saved_copy.load(lambda position: self._is_known(record, position)):
            return False
        self._saved_at = self._clock()
        templates = self.index.searcher.extent().templates
        log(logging.INFO, "index read from its snapshot", templates=templates,
            seconds=round(self._saved_at - started, 2))  # fmt: skip
        return True

    def _build(self, record: CollectionRecord) -> None:
        """From the database, page by page: what changes meanwhile comes with the next changes."""
        started = self._clock()
        self.index.build(self._pages(record), position_of(record))
        if (templates := self.index.searcher.extent().templates) > 0:
            seconds = round(self._clock() - started, 2)
            log(logging.INFO, "index built from the database", templates=templates,
                seconds=seconds)  # fmt: skip

    def _pages(self, record: CollectionRecord) -> Iterator[Templates]:
        last, count, logged = 0, 0, self._clock()
        while len((page := self._changes.templates_after(record, last, PAGE)).keys):
            yield page
            last, count = int(page.keys[-1]), count + len(page.keys)
            if self._clock() - logged > 5:
                logged = self._clock()
                log(logging.INFO, "building the index", templates=count)

    # --- maintenance ---------------------------------------------------------------------------

    def maintain(self) -> None:
        """Do the index's maintenance that is due, and keep a saved copy."""
        reached = self.index.position
        if reached is None:
            return
        changed = False
        while self.index.maintain():
            changed = True
        self.index.saved_copy.erase()
        due = self._clock() - self._saved_at > SAVE_AFTER_S
        if changed or (due and self.index.saved_copy.unsaved):
            self.save()
        self._maintained = reached

    def save_soon(self) -> None:
        """Make the next round of maintenance save what is not saved yet."""
        self._saved_at = -np.inf
        self._maintained = None

    def save(self) -> None:
        """Update the index to the database, then save a copy of it. If that fails, the last copy
        stays. Nothing is saved of a deleted collection."""
        if self.index.position is None or not self.index.saved_copy.may_save():
            return
        try:
            # What the owner before this process erased may still be in this index.
            self._update_to_present()
            self.index.saved_copy.save()
        except (CollectionNotFound, EmbeddingSpaceMismatch):
            self.index.saved_copy.discard()
        except (OSError, StoreUnavailable) as error:
            log(logging.WARNING, "the index snapshot was not saved", error)
        self._saved_at = self._clock()

    def _update_to_present(self) -> None:
        """Update the index to the collection's present revision. Raises CollectionNotFound,
        EmbeddingSpaceMismatch or StoreUnavailable."""
        assert self._record is not None, "the index was opened"
        record = self._collections.by_key(self._record.key)
        self.current(record.require_space(self._record.embedding_space))

    def close(self) -> bool:
        """Save a last copy if something changed; returns whether nothing is left to erase."""
        if self.index.position is None:
            return True
        self.index.saved_copy.erase()
        if self.index.saved_copy.unsaved:
            self.save()
        return self.index.close()


def position_of(record: CollectionRecord) -> Position:
    """The position of a collection in the database."""
    return Position(record.revision, record.stamp)
