"""Enrollments that are done once: their keys and answers, written with the enrollment itself."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, delete, insert, select, tuple_

from app.errors import EnrolledBefore, IdempotencyKeyReused
from app.store.database import Database
from app.store.identifiers import new_request_key
from app.store.records import (
    CollectionRecord,
    IdempotencyRequest,
    KeptAnswer,
    RequestKey,
    StoredTemplate,
)
from app.store.sql.lookups import aware, get_collection
from app.store.sql.statements import Statement
from app.store.sql.tables import idempotency
from app.types import JsonObject

KEPT = timedelta(hours=24)
ROWS_AT_ONCE = 1_000  # removed in one transaction
_MINE = idempotency.c.collection == bindparam("of")
_FORGET = Statement(
    delete(idempotency).where(_MINE, idempotency.c.created_at <= bindparam("since"))
)
_KEEP = Statement(insert(idempotency))
_KEPT_ANSWER = Statement(
    select(idempotency.c.request_digest, idempotency.c.answer).where(
        _MINE,
        idempotency.c.key == bindparam("request"),
        idempotency.c.created_at > bindparam("since"),
    )
)


class IdempotencyStore:
    """Finds the answers of enrollments that were done before."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def answered(self, name: str, request: RequestKey) -> JsonObject | None:
        """The answer that the same request had within the last 24 hours, else None.

        Raises IdempotencyKeyReused where its key belongs to another request.
        """
        with self._database.reading() as connection:
            collection = get_collection(connection, name)
            return _kept_answer(connection, collection, request, self._database.clock())

    def prune(self) -> bool:
        """Remove some answers that have expired; returns whether there may be more. (An enrollment
        removes those of its collection; here are those of collections without enrollments.)"""
        since = self._database.clock() - KEPT
        columns = idempotency.c.collection, idempotency.c.key
        query = select(*columns).where(idempotency.c.created_at <= since).limit(ROWS_AT_ONCE)
        with self._database.reading() as connection:
            keys = [tuple(row) for row in connection.execute(query)]
        if keys:
            # Not those that an enrollment or another process is removing: each would have some rows
            # and wait for the others.
            free = (
                select(*columns)
                .where(tuple_(*columns).in_(keys), idempotency.c.created_at <= since)
                .with_for_update(skip_locked=True)
            )
            with self._database.writing() as connection:
                connection.execute(delete(idempotency).where(tuple_(*columns).in_(free)))
        return len(keys) == ROWS_AT_ONCE

    def of_person(self, person: int) -> list[KeptAnswer]:
        """The answers that are kept of a person, given by their key."""
        query = select(idempotency.c.key, idempotency.c.answer, idempotency.c.created_at)
        query = query.where(idempotency.c.person == person).order_by(idempotency.c.created_at)
        with self._database.reading() as connection:
            return [
                KeptAnswer(row.key, row.answer, aware(row.created_at))
                for row in connection.execute(query)
            ]


def refuse_done(
    connection: Connection, collection: CollectionRecord, request: RequestKey, now: datetime
) -> None:
    """Forget the collection's expired answers; raise EnrolledBefore where this request has one."""
    _FORGET.run(connection, {"of": collection.key, "since": now - KEPT})
    if _kept_answer(connection, collection, request, now) is not None:
        raise EnrolledBefore("The enrollment of this Idempotency-Key was done before.")


def keep_answer(
    connection: Connection,
    keys: tuple[int, int],
    request: IdempotencyRequest,
    stored: Sequence[StoredTemplate],
    now: datetime,
) -> None:
    """Write the answer in the transaction of the rows that it names; `keys` are those of the
    collection and the person."""
    collection, person = keys
    kept = {
        "collection": collection,
        "key": new_request_key(request.key),
        "person": person,
        "request_digest": request.request_digest,
        "answer": dict(request.answer(stored)),
        "created_at": now,
    }
    _KEEP.run(connection, kept)


def _kept_answer(
    connection: Connection, collection: CollectionRecord, request: RequestKey, now: datetime
) -> JsonObject | None:
    asked = {"of": collection.key, "request": request.key, "since": now - KEPT}
    row = _KEPT_ANSWER.first(connection, asked)
    if row is None:
        return None
    if row.request_digest != request.request_digest:
        raise IdempotencyKeyReused(
            "This Idempotency-Key came with another request within the last 24 hours. Use a new "
            "key for each enrollment; send the same key again only with the same request."
        )
    answer: JsonObject = row.answer
    return answer
