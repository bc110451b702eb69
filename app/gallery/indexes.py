"""The indexes of a database in this process: opened on demand, updated, and dropped."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeVar

from app.errors import CollectionNotFound, EmbeddingSpaceMismatch, StoreUnavailable
from app.gallery.replica import Replica, position_of
from app.gallery.replicas import Replicas
from app.index.engine import SearchEngine
from app.index.port import PersonSearch, Position, SearchIndex
from app.store.records import CollectionMark, CollectionRecord, EnrolledTogether, Erasure
from app.store.store import Store
from app.telemetry.logs import log

T = TypeVar("T")


class Indexes:
    """The indexes of the collections of one embedding space. A closed index takes no memory; when
    it is needed, it is read from its saved copy or from the database."""

    def __init__(self, store: Store, engine: SearchEngine, embedding_space: str) -> None:
        self._collections = store.collections
        self._changes = store.changes
        self._engine = engine
        self._space = embedding_space
        self._catalog = engine.catalog(store.database.identity())
        self.replicas = Replicas(self._new, engine.max_bytes)
        self._owned = False
        self._followed: tuple[int, int, int] | None = None
        # By closed collection: up to where its saved copy is free of removed templates.
        self._erased_at: dict[int, Position] = {}
        # Collections that have no index here, whose saved copies could not be removed yet.
        self._to_remove: set[int] = set()
        self._unerased_since: float | None = None

    def _new(self, record: CollectionRecord) -> Replica:
        return Replica(self._collections, self._changes, self._catalog.open(record))

    # --- one collection ----------------------------------------------------------------------

    @contextmanager
    def current(self, record: CollectionRecord) -> Iterator[SearchIndex]:
        """The collection's index at the record's revision or a later one; it is not closed within
        the context."""
        with self._noticing_deletion(record), self.replicas.using(record) as replica:
            yield replica.current(record)

    @contextmanager
    def searching(self, record: CollectionRecord) -> Iterator[PersonSearch]:
        """The searcher at the record's revision or a later one; usable within the context."""
        with self.current(record) as index:
            yield index.searcher

    @contextmanager
    def at_revision(self, record: CollectionRecord) -> Iterator[PersonSearch | None]:
        """The searcher if the index is open and at the record's revision already, so that nothing
        is waited for; else None."""
        with self.replicas.using_open(record.key, wait=False) as replica:
            ready = replica is not None and replica.is_at(position_of(record))
            yield replica.index.searcher if replica is not None and ready else None

    def follow(self, record: CollectionRecord) -> None:
        """Update the index to the record's revision if it is open, or if there is memory to open
        it. Otherwise the next search opens it: a write never closes another index. Nor does it wait
        for a thread that is updating the index."""
        if record.embedding_space != self._space:
            return  # searches of that collection are refused: an index would be of no use
        with self._noticing_deletion(record), self._open_if_memory_allows(record) as replica:
            if replica is not None:
                replica.follow(record)

    def add(self, done: EnrolledTogether) -> bool:
        """Update the index by what this process has enrolled, if it is open and has a position.
        Returns whether it is and has: then it holds the templates, or another thread is updating or
        closing it, which is not waited for."""
        record = done.after
        opened = self.replicas.using_open(record.key, wait=False)
        with self._noticing_deletion(record), opened as replica:
            if replica is None or replica.index.position is None:
                return False
            replica.add(done)
            return True

    def _open_if_memory_allows(
        self, record: CollectionRecord
    ) -> AbstractContextManager[Replica | None]:
        if self.replicas.has_room():
            return self.replicas.using(record)
        return self.replicas.using_open(record.key)

    def erase(self, record: CollectionRecord) -> Erasure:
        """Remove the templates removed up to the record's revision from the index and its saved
        copy, even if the index is closed. Pending if the copy may still have them."""
        if record.embedding_space != self._space:
            return self.forget(record.key)  # no search uses an index of it, or its saved copy
        with self._noticing_deletion(record), self._open_to_erase(record) as replica:
            if replica is not None:
                replica.erase(record)
                return replica.erased
        return self._left_saved(record.key)

    def _open_to_erase(self, record: CollectionRecord) -> AbstractContextManager[Replica | None]:
        # If another process owns the saved copies, its maintenance erases the templates.
        if self._catalog.own() and self._catalog.may_be_saved(record.key):
            return self.replicas.using(record)
        return self._open_if_memory_allows(record)

    def _left_saved(self, key: int) -> Erasure:
        if self._catalog.own() and not self._catalog.may_be_saved(key):
            return Erasure.DONE
        return Erasure.PENDING  # another process may also be writing its first copy

    def forget(self, key: int) -> Erasure:
        """Drop a collection's index and remove its saved copy; pending if another process owns
        it."""
        if not self.replicas.discard(key):
            self._catalog.remove(key)
        if not self._catalog.may_be_saved(key):
            self._to_remove.discard(key)
        elif key not in self._to_remove:
            self._to_remove.add(key)
            if self._catalog.own():
                log(logging.WARNING, "the index snapshot of a deleted collection cannot be removed "
                    "now and is tried again")  # fmt: skip
        return self._left_saved(key)

    @contextmanager
    def _noticing_deletion(self, record: CollectionRecord) -> Iterator[None]:
        """Drop the index of a collection that turns out to be deleted: it may have been opened
        again after the deletion dropped it."""
        try:
            yield
        except CollectionNotFound:
            self.forget(record.key)
            raise

    # --- all of them -------------------------------------------------------------------------

    def prepare(self) -> None:
        """Open the indexes of large collections, the most recently enrolled into first, as far as
        memory allows. Small ones are opened on demand, which takes milliseconds."""
        # Own the saved copies first, so that opened indexes know the state of their folders.
        self._owned = self._catalog.own()
        wanted: list[CollectionRecord] = []
        room = self._engine.max_bytes
        for key, held in self._collections.large(self._engine.least_saved).items():
            with suppress(CollectionNotFound, EmbeddingSpaceMismatch):
                record = self._collections.by_key(key).require_space(self._space)
                room -= self._engine.expected_memory(held, record.dimension)
                if room < 0 and wanted:
                    break
                wanted.append(record)
        for record in reversed(wanted):
            try:
                with suppress(CollectionNotFound, EmbeddingSpaceMismatch), self.current(record):
                    pass
            except StoreUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 (its searches fail, and no others)
                log(logging.WARNING, "the index of a collection cannot be opened", error,
                    collection=record.name)  # fmt: skip

    def run_maintenance(self) -> None:
        """Apply changes of other processes, maintain each index, erase removed templates from saved
        copies, and save. An index that fails does not keep the others from it; raises the first
        such error.

        While nothing changes in the database this is one query, for any number of collections.
        """
        owned = self._catalog.own()
        if owned and not self._owned:
            self._followed = None
            self.replicas.save_soon()
        self._owned = owned
        _for_each(
            (self._follow_changes, self._remove_left, self._maintain_all), lambda step: step()
        )

    def _follow_changes(self) -> None:
        state = self._collections.state()
        if state != self._followed:
            self._follow_all()
            self._followed = state

    def _maintain_all(self) -> None:
        try:
            _for_each(self.replicas.unsettled(), self._maintain)
        finally:
            self.unerased_s()  # counts from when it was first seen

    def unerased_s(self) -> float:
        """For how many seconds saved copies have had removed templates that this process is to
        erase, or were left of a collection that it deleted; 0 if there are none."""
        opened = (self.replicas.get(key) for key in self.replicas.unsettled())
        left = bool(self._to_remove) or any(
            one is not None and one.index.saved_copy.left_to_erase for one in opened
        )
        if not left:
            self._unerased_since = None
            return 0.0
        now = time.monotonic()
        since = self._unerased_since = self._unerased_since or now
        return max(now - since, 1e-3)

    def _remove_left(self) -> None:
        """Remove saved copies that could not be removed before."""
        if not self._to_remove:
            return
        marks = self._collections.marks()
        for key in list(self._to_remove):
            if key in marks and marks[key].embedding_space == self._space:
                self._to_remove.discard(key)  # migrated meanwhile: the copy is in use again
            else:
                self.forget(key)

    def _maintain(self, key: int) -> None:
        with self.replicas.using_open(key, recent=False) as replica:
            if replica is not None:
                replica.maintain()

    def _follow_all(self) -> None:
        # What is listed before the collections are read belongs to one of them, or to none.
        opened = list(self.replicas)
        kept = self._catalog.saved() if self._owned else set()
        marks = self._collections.marks()
        ours = {key: mark for key, mark in marks.items() if mark.embedding_space == self._space}
        for key in {*opened, *kept} - ours.keys():
            self.forget(key)
        self._erased_at = {key: at for key, at in self._erased_at.items() if key in kept}

        def follow(key: int) -> None:
            if not self._follow_open(key, ours[key]) and self._owned:
                self._erase_closed(key, ours[key])

        _for_each(ours.keys() & {*opened, *kept}, follow)

    def _follow_open(self, key: int, mark: CollectionMark) -> bool:
        """Update an index to a mark if it is open; returns whether it is. One that could not be
        read is not: the next search tries again."""
        with self.replicas.using_open(key, recent=False) as replica:
            if replica is None or replica.index.position is None:
                return False
            if not replica.is_at(Position(mark.revision, mark.stamp)):
                record = self._collections.by_key(key)
                with self._noticing_deletion(record):
                    replica.erase(record)
            return True

    def _erase_closed(self, key: int, mark: CollectionMark) -> None:
        """Erase what another process removed from a collection whose index is closed here."""
        checked, kept = self._erased_at.get(key), self._catalog.saved_position(key)
        known = [one for one in (checked, kept) if one is not None]
        if not known:
            return  # no saved copy: nothing to erase
        before, now = max(known), Position(mark.revision, mark.stamp)
        if before != now and not self._changes.only_added_since(key, before.revision, before.stamp):
            self.erase(self._collections.by_key(key).require_space(self._space))
        self._erased_at[key] = now

    def close(self) -> None:
        """Save copies of the indexes of the collections that still exist."""
        with suppress(StoreUnavailable):
            for key in set(self.replicas) - self._collections.marks().keys():
                self.forget(key)
        self.replicas.close()
        self._catalog.release()


def _for_each(items: Iterable[T], work: Callable[[T], None]) -> None:
    """Do the work for each item, also after one whose work fails; raise the first error."""
    failed: Exception | None = None
    for item in items:
        try:
            with suppress(CollectionNotFound, EmbeddingSpaceMismatch):
                work(item)
        except StoreUnavailable:  # as it would be for the others
            raise
        except Exception as error:  # noqa: BLE001 (it is raised)
            failed = failed or error
    if failed is not None:
        raise failed
