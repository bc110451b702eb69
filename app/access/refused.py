"""Calls that were refused or failed, on their way to the audit log, and their entries there."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from sqlalchemy import select

from app.clock import seconds
from app.locks import new_lock
from app.store.database import Database
from app.store.sql.audit_log import note_call
from app.store.sql.lookups import is_live
from app.store.sql.tables import collections


@dataclass(frozen=True, slots=True)
class CallEntry:
    """A call that was refused or failed, `times` times; the request id and the client's
    address are those of the first."""

    actor: str
    outcome: str
    call: str
    code: str
    collection: str | None
    times: int
    request_id: str | None = None
    client: str | None = None


class CallLog:
    """Writes such entries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, calls: Sequence[CallEntry]) -> None:
        """Append an entry for each kind of call. A name that no collection has is left out: a
        client may have sent anything."""
        names = {one.collection for one in calls} - {None}
        query = select(collections.c.name).where(collections.c.name.in_(names), is_live())
        with self._database.writing() as connection:
            known = set(connection.execute(query).scalars()) if names else set()
            for one in calls:
                name = one.collection if one.collection in known else None
                note_call(
                    connection, one.outcome, name, (one.actor, one.request_id, one.client),
                    call=one.call, code=one.code, times=one.times,
                )  # fmt: skip


WINDOW_S = 3600.0
MOST_OF_ONE = 20  # kinds of one caller
MOST = 200
MOST_AT_ONCE = 50  # entries of one transaction, which other writers wait for
SEVERAL = "several"
Origin = tuple[str | None, str | None]  # request id, client's address


class CallOutcome(StrEnum):
    """`denied`: without a key that allows it. `limited`: by the limits of the key. `failed`: it
    should have changed something."""

    DENIED = "denied"
    LIMITED = "limited"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """One kind of refused call. `collection`: the name that the path has, if the caller is
    known."""

    actor: str
    outcome: CallOutcome
    call: str
    code: str
    collection: str | None = None


class RefusedCalls:
    """Counts refused calls and writes them to the audit log. `note` does not wait for the database;
    the other methods write to it."""

    def __init__(self, log: CallLog, clock: Callable[[], float] = seconds) -> None:
        self._log = log
        self._clock = clock
        self._writing = new_lock("access.recording")
        self._lock = new_lock("access.refused")
        self._began = clock()
        self._new: dict[RefusedCall, Origin] = {}  # of calls that are not written yet
        self._more = Counter[RefusedCall]()  # since the first of the kind, which was noted
        self._kinds = Counter[str]()  # of each caller, in this window

    def note(self, call: RefusedCall, origin: Origin) -> None:
        """Count a call; it is written later."""
        with self._lock:
            kind = self._kind(call)
            if kind in self._more:
                self._more[kind] += 1
                return
            self._more[kind] = 0
            self._kinds[kind.actor] += 1
            self._new[kind] = origin

    def _kind(self, call: RefusedCall) -> RefusedCall:
        """What a call is counted as: with others if there are too many kinds."""
        if call in self._more:
            return call
        if self._kinds.total() >= MOST:
            return RefusedCall(SEVERAL, call.outcome, SEVERAL, SEVERAL)
        if self._kinds[call.actor] >= MOST_OF_ONE:
            return RefusedCall(call.actor, call.outcome, SEVERAL, SEVERAL)
        return call

    def round(self) -> None:
        """Write the first calls of each kind, and once an hour the numbers of the others. Raises
        StoreUnavailable or StoreFull; then they are written later."""
        with self._writing:
            self._write_new()
        if self._clock() - self._began >= WINDOW_S:
            self.flush()

    def flush(self) -> None:
        """Write everything now. Raises as `round` does."""
        with self._writing:
            self._write_all()

    def _write_all(self) -> None:
        while self._write_new():
            pass
        with self._lock:
            kinds = [kind for kind, count in self._more.items() if count]
        for start in range(0, len(kinds), MOST_AT_ONCE):
            self._write_more(kinds[start : start + MOST_AT_ONCE])
        with self._lock:
            counted = {kind: count for kind, count in self._more.items() if count}
            self._more = Counter(dict.fromkeys(self._new, 0) | counted)
            self._kinds = Counter(kind.actor for kind in self._more)
            self._began = self._clock()

    def _write_more(self, kinds: list[RefusedCall]) -> None:
        with self._lock:
            counts = {kind: self._more[kind] for kind in kinds}
        self._log.record([_entry(kind, count) for kind, count in counts.items()])
        with self._lock:
            self._more.subtract(counts)

    def _write_new(self) -> bool:
        """Write some first calls; returns whether there were any."""
        with self._lock:
            some = dict(islice(self._new.items(), MOST_AT_ONCE))
        if not some:
            return False
        self._log.record([_entry(kind, 1, of) for kind, of in some.items()])
        with self._lock:
            for kind in some:
                self._new.pop(kind, None)
        return True


def _entry(kind: RefusedCall, times: int, origin: Origin = (None, None)) -> CallEntry:
    what = kind.actor, kind.outcome, kind.call, kind.code, kind.collection
    return CallEntry(*what, times, *origin)
