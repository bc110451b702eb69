"""The indexes that one process has open: opened on demand, the least recently used closed again."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from app.errors import StoreUnavailable
from app.gallery.replica import Replica
from app.index.port import SearchCounts
from app.locks import new_condition
from app.store.records import CollectionRecord

CLOSING_S = 60.0  # how long a caller waits for an index that is being closed


@dataclass(slots=True, eq=False)
class OpenReplica:
    """A replica, its number of current users, and its bytes after the last use; `sized`: they are
    those of a settled replica, which do not change."""

    replica: Replica
    users: int = 0
    size: int = 0
    sized: bool = False
    closing: bool = False


@dataclass(frozen=True, slots=True)
class OpenIndexes:
    """How many indexes are open, the bytes of memory they take, and how many were opened and
    closed so far."""

    open: int
    bytes: int
    opened: int
    closed: int


class Replicas(Mapping[int, Replica]):
    """The open replicas by collection. When they take more than `limit` bytes together, the least
    recently used ones that are not in use are closed, but never the last one."""

    def __init__(self, new: Callable[[CollectionRecord], Replica], limit: int) -> None:
        self._new = new
        self._limit = limit
        self._open: OrderedDict[int, OpenReplica] = OrderedDict()
        self._unsettled: set[int] = set()
        self._bytes = self._opened = self._closed = 0
        self._costs_of_closed = SearchCounts()
        self._changed = new_condition("gallery.replicas")

    @contextmanager
    def using(self, record: CollectionRecord) -> Iterator[Replica]:
        """The collection's replica, opened if necessary; it is not closed within the context."""
        one = self._take(record.key, record)
        assert one is not None, "it was opened"
        with self._held(record.key, one) as replica:
            yield replica

    @contextmanager
    def using_open(
        self, key: int, *, recent: bool = True, wait: bool = True
    ) -> Iterator[Replica | None]:
        """The collection's replica if it is open, else None. Maintenance is not a `recent` use: it
        does not predict which index will be needed next. One that is being closed is waited for, or
        without `wait` not used. Without `wait` no other index is closed afterwards either: saving
        it may take seconds. Maintenance, or the next user who may wait, closes it."""
        one = self._take(key, None, recent=recent, wait=wait)
        if one is None:
            yield None
            return
        with self._held(key, one, may_close=wait) as replica:
            yield replica

    def _take(
        self, key: int, record: CollectionRecord | None, *, recent: bool = True, wait: bool = True
    ) -> OpenReplica | None:
        with self._changed:
            if not wait and self._is_closing(key):
                return None
            if not self._changed.wait_for(lambda: not self._is_closing(key), CLOSING_S):
                raise StoreUnavailable(
                    "The collection's index is still being saved and closed. Try again in a "
                    "moment.",
                    {"retry_after": 1},
                )
            one = self._open.get(key)
            if one is None and record is not None:
                one = self._open[key] = OpenReplica(self._new(record))
                self._opened += 1
            if one is not None:
                one.users += 1
                if recent:
                    self._open.move_to_end(key)
            return one

    def _is_closing(self, key: int) -> bool:
        one = self._open.get(key)
        return one is not None and one.closing

    @contextmanager
    def _held(self, key: int, one: OpenReplica, *, may_close: bool = True) -> Iterator[Replica]:
        try:
            yield one.replica
        finally:
            with self._changed:
                one.users -= 1
                if self._open.get(key) is one:
                    settled = one.replica.settled
                    if not (settled and one.sized):
                        size = one.replica.index.usage.memory
                        self._bytes += size - one.size
                        one.size, one.sized = size, settled
                    if settled:
                        self._unsettled.discard(key)
                    else:
                        self._unsettled.add(key)
        if may_close:
            self._close_beyond_limit()

    # --- closing -----------------------------------------------------------------------------

    def _close_beyond_limit(self) -> None:
        while (found := self._next_to_close()) is not None:
            if not self._close(*found):
                return

    def _next_to_close(self) -> tuple[int, OpenReplica] | None:
        with self._changed:
            if self._bytes <= self._limit or len(self._open) < 2:
                return None
            newest = next(reversed(self._open))
            for key, one in self._open.items():
                if not one.users and not one.closing and key != newest:
                    one.closing = True
                    return key, one
            return None

    def _close(self, key: int, one: OpenReplica) -> bool:
        """Save the index if it changed, then drop it; returns whether that succeeded."""
        closed = False
        try:
            closed = one.replica.close()
        finally:
            with self._changed:
                one.closing = False
                if closed and self._open.get(key) is one:
                    self._drop(key)
                self._changed.notify_all()
        return closed

    def _drop(self, key: int) -> OpenReplica:
        one = self._open.pop(key)
        self._bytes -= one.size
        self._closed += 1
        self._unsettled.discard(key)
        self._costs_of_closed += one.replica.index.usage.costs
        return one

    def discard(self, key: int) -> bool:
        """Drop a collection's replica even if it is in use, and remove its snapshot; returns
        whether it was open."""
        with self._changed:
            one = self._drop(key) if key in self._open else None
            self._changed.notify_all()
        if one is not None:
            one.replica.index.saved_copy.discard()
        return one is not None

    def close(self) -> None:
        """Save a snapshot of every open index."""
        for key in self:
            with self.using_open(key) as replica:
                if replica is not None:
                    replica.close()

    # --- what there is -----------------------------------------------------------------------

    def __getitem__(self, key: int) -> Replica:
        return self._open[key].replica

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[int]:
        """Collections whose index is open, the most recently used last."""
        with self._changed:
            return iter(list(self._open))

    def has_room(self) -> bool:
        """Whether the limit is not reached."""
        return self._bytes < self._limit

    def unsettled(self) -> list[int]:
        """Collections with an open index that maintenance has something to do for."""
        with self._changed:
            return list(self._unsettled)

    def save_soon(self) -> None:
        """Make the next round of maintenance save a snapshot of every open index."""
        with self._changed:
            for key, one in self._open.items():
                one.replica.save_soon()
                self._unsettled.add(key)

    def counts(self) -> OpenIndexes:
        """How much is open."""
        with self._changed:
            return OpenIndexes(len(self._open), self._bytes, self._opened, self._closed)

    def costs(self) -> SearchCounts:
        """What all searches cost so far."""
        with self._changed:
            total = SearchCounts() + self._costs_of_closed
            replicas = list(self._open.values())
        for one in replicas:
            total += one.replica.index.usage.costs
        return total
