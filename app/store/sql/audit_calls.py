"""Entries of the audit log about calls that were refused or failed."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select

from app.store.database import Database
from app.store.sql.audit_log import note_call
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
        query = select(collections.c.name).where(collections.c.name.in_(names))
        with self._database.writing() as connection:
            known = set(connection.execute(query).scalars()) if names else set()
            for one in calls:
                name = one.collection if one.collection in known else None
                note_call(
                    connection, one.outcome, name, (one.actor, one.request_id, one.client),
                    call=one.call, code=one.code, times=one.times,
                )  # fmt: skip
