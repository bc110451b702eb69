"""The audit log: who changed what, each entry chained to the one before.

Entries are written in the transaction of the change: neither is kept without the other. A person
is named by their number in the database, which is used twice only if the backup of another database
is restored. Deleting a person deletes the row that connects the number with an id; their entries,
and the chain, stay as they are.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Select, bindparam, func, insert, select, update

from app.errors import DamagedData
from app.store.actor import actor
from app.store.backends import backend_of
from app.store.records import CollectionRecord
from app.store.sql.audit_chain import HASH_BYTES, digest_after, signature_of, signer_of
from app.store.sql.lookups import fetch_page
from app.store.sql.statements import Statement
from app.store.sql.tables import audit_entries, audit_head
from app.telemetry.logs import client_address, request_id
from app.types import JsonObject

if TYPE_CHECKING:
    from app.store.database import Database

NOTES = "likeness.audit"
Search = tuple[int | None, JsonObject]  # of one face: the number of the person found, and details
PAGE = 5000
PAGE_BYTES = 512 * 1024  # of a page for a client: 1,000 ordinary entries have 300 kB
BEFORE_ALL = -(2**63)  # a forged entry may have any number
MEMBERS = {"at", "actor", "action", "collection", "person", "request_id", "details"}
CLIENT = "client"  # only in entries of requests
DONE = "done"  # the outcome of entries without one, which earlier versions wrote
OPTIONAL = {CLIENT, "outcome"}
Caller = tuple[str, str | None, str | None]  # actor, request id, client's address
DATABASE_RESTORED = "database.restored"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change. `content`: the JSON text that `digest` is computed of."""

    sequence: int
    content: str
    digest: bytes

    @property
    def members(self) -> dict[str, Any]:
        """The content: at, actor, action, outcome, collection, person, request_id, details; of a
        request also client, the address that it came from."""
        try:
            found = json.loads(self.content)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.keys() - OPTIONAL != MEMBERS:
            raise DamagedData(
                f"Entry {self.sequence} of the audit log was changed and cannot be read; "
                "`likeness audit verify` checks all entries."
            )
        return {"outcome": DONE, **found}


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The end of the chain. `signature` is of `sequence` and `digest`; `signer` identifies
    the key that signed."""

    sequence: int
    digest: bytes
    signature: bytes | None
    signer: str | None


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Conditions that entries must meet; None: no condition. `since` is inclusive, `until` is
    exclusive."""

    actor: str | None = None
    action: str | None = None
    collection: str | None = None
    person: int | None = None
    since: datetime | None = None
    until: datetime | None = None

    def applied(self, query: Select[Any]) -> Select[Any]:
        columns = audit_entries.c
        for name in ("actor", "action", "collection", "person"):
            if (value := getattr(self, name)) is not None:
                query = query.where(columns[name] == value)
        if self.since is not None:
            query = query.where(columns.at >= self.since.astimezone(UTC))
        return query if self.until is None else query.where(columns.at < self.until.astimezone(UTC))


@dataclass(frozen=True, slots=True)
class _Note:
    """A change within a transaction that is not over, or a refused call; and its caller."""

    action: str
    collection: str | None
    person: int | None
    details: JsonObject
    call: Caller
    outcome: str = DONE


def note(
    connection: Connection,
    action: str,
    collection: str | None = None,
    person: int | None = None,
    **details: Any,
) -> None:
    """Note a change, which becomes an entry when the transaction is committed. `details` must
    identify nobody: they stay when a person is deleted."""
    connection.info[NOTES].append(_Note(action, collection, person, details, _caller()))


def note_call(
    connection: Connection, outcome: str, collection: str | None, caller: Caller, **details: Any
) -> None:
    """Note calls that changed nothing because they were refused or failed; `caller` is the actor,
    the id of the request and the client's address."""
    made = _Note(f"call.{outcome}", collection, None, details, caller, outcome)
    connection.info[NOTES].append(made)


def note_each(
    connection: Connection, action: str, collection: str, people: Mapping[int, JsonObject]
) -> None:
    """Note the same change of several persons, with details of each."""
    call = _caller()
    connection.info[NOTES] += [
        _Note(action, collection, person, details, call)
        for person, details in sorted(people.items())
    ]


def _caller() -> Caller:
    return actor.get(), request_id.get(), client_address.get()


_LOCK_HEAD = Statement(select(audit_head.c.sequence, audit_head.c.digest).with_for_update())
_ADD_ENTRIES = Statement(insert(audit_entries))
_MOVE_HEAD = Statement(
    update(audit_head).values(
        sequence=bindparam("to"), digest=bindparam("its"), signature=bindparam("signed"),
        signer=bindparam("by"),
    )
)  # fmt: skip


class AuditWriter:
    """Appends entries at the end of transactions."""

    def __init__(self, key: bytes | None) -> None:
        """`key` signs the chain's end. Without one it is not signed."""
        self._key = key
        self._signer = key and signer_of(key)

    def begin(self, connection: Connection) -> None:
        """Discard the notes of an earlier transaction of this connection that was rolled back."""
        connection.info[NOTES] = []

    def noted(self, connection: Connection) -> int:
        """How many changes the transaction has noted."""
        return len(connection.info[NOTES])

    def forget(self, connection: Connection, noted: int) -> None:
        """Discard all notes but the first `noted`: what they were of was undone."""
        del connection.info[NOTES][noted:]

    def append(self, connection: Connection, now: datetime) -> None:
        """Append what was noted. To be called last in a transaction, because the chain's end stays
        locked until the commit; what does not depend on it is made before."""
        notes: Sequence[_Note] = connection.info[NOTES]
        if not notes:
            return
        rows = [_row(one, now) for one in notes]
        head = _LOCK_HEAD.first(connection, {})
        if head is None:
            raise DamagedData(
                "The end of the audit log is missing (the row of the table audit_head), so nothing "
                "can be changed. `likeness audit verify` checks the log; restore the database from "
                "a copy of its files."
            )
        sequence, digest = head.sequence, head.digest
        for row in rows:
            sequence += 1
            digest = digest_after(digest, sequence, row["content"])
            row |= {"sequence": sequence, "digest": digest}
        _ADD_ENTRIES.run(connection, *rows)
        signature = self._key and signature_of(self._key, sequence, digest)
        new = {"to": sequence, "its": digest, "signed": signature, "by": self._signer}
        _MOVE_HEAD.run(connection, new)


def _row(one: _Note, now: datetime) -> dict[str, Any]:
    """The row of an entry, without what depends on the one before it."""
    who, request, client = one.call
    row = {
        "actor": who,
        "action": one.action,
        "collection": one.collection,
        "person": one.person,
    }
    content = {
        "at": _written(now),
        **row,
        "outcome": one.outcome,
        "request_id": request,
        **({} if client is None else {CLIENT: client}),
        "details": one.details,
    }
    return {**row, "at": now, "content": json.dumps(content, separators=(",", ":"))}


def _written(moment: datetime) -> str:
    """A time as the content has it. SQLite gives times without their zone, which is UTC."""
    known = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return known.astimezone(UTC).isoformat(timespec="milliseconds")


_LAST_RESTORE = select(func.coalesce(func.max(audit_entries.c.sequence), 0)).where(
    audit_entries.c.action == DATABASE_RESTORED
)


class AuditStore:
    """Reads the audit log, and appends entries about events that change nothing else."""

    def __init__(self, database: "Database") -> None:
        self._database = database

    def record(
        self, action: str, collection: str | None = None, person: int | None = None, **details: Any
    ) -> None:
        """Append an entry about an event that changes nothing else in the database."""
        with self._database.writing() as connection:
            note(connection, action, collection, person, **details)

    def record_searches(
        self, collection: CollectionRecord, action: str, searches: Sequence[Search]
    ) -> None:
        """Append an entry for each searched face: the person in the answer, and details."""
        with self._database.writing() as connection:
            for number, details in searches:
                note(connection, action, collection.name, number, **details)

    def page(
        self, after: int, limit: int, wanted: AuditFilter = AuditFilter()
    ) -> tuple[list[AuditEntry], bool]:
        """The next entries after a number, `limit` at most, and whether there are more. A page ends
        early, as that of a list does, where its entries are long."""
        query = _after(after, wanted)
        with self._database.reading() as connection:
            found = fetch_page(connection, query, limit, "content", PAGE_BYTES)
        return [AuditEntry(*row) for row in found.items], found.more

    def latest(self, limit: int, wanted: AuditFilter = AuditFilter()) -> list[AuditEntry]:
        """The last entries, the oldest of them first. Those of a person begin after the last
        restore of a backup: before it the number may have been another person's."""
        query = wanted.applied(select(*_COLUMNS)).order_by(audit_entries.c.sequence.desc())
        if wanted.person is not None:
            query = query.where(audit_entries.c.sequence > _LAST_RESTORE.scalar_subquery())
        with self._database.reading() as connection:
            return [AuditEntry(*row) for row in connection.execute(query.limit(limit))][::-1]

    def last_restore(self) -> int:
        """The number of the entry of the last restore of a backup; 0 if there is none."""
        with self._database.reading() as connection:
            return int(connection.execute(_LAST_RESTORE).scalar_one())

    def begin_log(self) -> None:
        """Write the first entry, unless there is one: an empty log is then one that was removed."""
        with self._database.reading() as connection:
            begun = head_of(connection).sequence > 0
        if not begun:
            self.record("log.begun")

    def history(self, collection: str, person: int, limit: int) -> tuple[list[AuditEntry], bool]:
        """The last entries about a person, as `latest` gives them, and whether there are older
        ones."""
        found = self.latest(limit + 1, AuditFilter(collection=collection, person=person))
        return found[-limit:], len(found) > limit

    def everything(self) -> Iterator[AuditEntry | AuditHead]:
        """All entries as they are at one moment, then the end of the chain. The caller may take
        its time between two of them, as a slow pipe does."""
        with self._database.reading() as connection:
            backend_of(connection.engine).be_patient(connection)
            head = head_of(connection)
            after = BEFORE_ALL
            while found := entries_after(connection, after, PAGE):
                yield from found
                after = found[-1].sequence
            yield head

    def columns_that_differ(self) -> int | None:
        """The number of the first entry whose columns are not those of its content. Only for a log
        whose chain is valid."""
        after = BEFORE_ALL
        with self._database.reading() as connection:
            while rows := connection.execute(
                select(audit_entries)
                .where(audit_entries.c.sequence > after)
                .order_by(audit_entries.c.sequence)
                .limit(PAGE)
            ).all():
                for row in rows:
                    members = json.loads(row.content)
                    columns = {one: getattr(row, one) for one in _SEARCHED}
                    columns["at"] = _written(row.at)
                    if any(members[one] != value for one, value in columns.items()):
                        return int(row.sequence)
                after = rows[-1].sequence
        return None


_COLUMNS = (audit_entries.c.sequence, audit_entries.c.content, audit_entries.c.digest)
_SEARCHED = ("actor", "action", "collection", "person")


def entries_after(connection: Connection, sequence: int, limit: int) -> list[AuditEntry]:
    """The next entries after a number."""
    rows = connection.execute(_after(sequence, AuditFilter()).limit(limit))
    return [AuditEntry(*row) for row in rows]


def _after(sequence: int, wanted: AuditFilter) -> Select[Any]:
    query = wanted.applied(select(*_COLUMNS).where(audit_entries.c.sequence > sequence))
    return query.order_by(audit_entries.c.sequence)


def head_of(connection: Connection) -> AuditHead:
    """The end of the chain."""
    row = connection.execute(select(audit_head)).one_or_none()
    if row is None:
        return AuditHead(0, bytes(HASH_BYTES), None, None)
    return AuditHead(row.sequence, row.digest, row.signature, row.signer)
