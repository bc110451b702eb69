"""Queries over the tables, and their rows as the records of `app.store.records`.

Each takes an open connection: the caller's transaction decides what it sees.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, func, select

from app.errors import CollectionNotFound, FaceNotFound, PersonNotFound
from app.index.port import Ids, Templates
from app.store.identifiers import spellings
from app.store.metadata import CorrectedMetadata
from app.store.records import MAX_PAGE_BYTES, CollectionRecord, FaceRecord, Page, PersonRecord
from app.store.sql.embedding_rows import EmbeddingRowCodec
from app.store.sql.statements import Statement
from app.store.sql.tables import collections, database, persons, templates

ROWS_AT_ONCE = 32  # that a driver reads ahead
# JSON of one page as an earlier version stored it, which may be longer than today's.
MOST_STORED = 8 * 1024 * 1024
MAX_KEYS = 10_000  # in one statement; SQLite takes 32,766 parameters
# A deleted collection is named by this and its key until its rows are deleted: no name that a
# client can give a collection begins with it.
DELETED = "/"


def is_live(table: Table = collections) -> ColumnElement[bool]:
    """Whether a collection, or a row that belongs to one, is not of a deleted collection: every
    query that looks for collections, or counts or names rows of several, has this condition."""
    if table is collections:
        return collections.c.name.not_like(f"{DELETED}%")
    refers = next(one for one in table.c if one.foreign_keys)
    (key,) = refers.foreign_keys
    return refers.not_in(select(key.column).where(~is_live(key.column.table)))


def collection_query() -> Select[Any]:
    """Live collections, with the columns that `collection_record` needs."""
    identity = select(database.c.id).scalar_subquery().label("database")
    return select(collections, identity).where(is_live())


_BY_NAME = collection_query().where(collections.c.name == bindparam("spelling"))
_COLLECTION = Statement(_BY_NAME)
_LOCKED_COLLECTION = Statement(_BY_NAME.with_for_update())
_BY_KEY = Statement(collection_query().where(collections.c.id == bindparam("key")))


def get_collection(connection: Connection, name: str) -> CollectionRecord:
    return _one_collection(connection, name, _COLLECTION)


def lock_collection(connection: Connection, name: str) -> CollectionRecord:
    """The collection, locked: no other transaction writes to it until this one ends.

    The first statement of every write: so revisions become visible in their order, and what is
    read after it cannot change. SQLite, which has one writer at a time, needs no more than that.
    """
    return _one_collection(connection, name, _LOCKED_COLLECTION)


def _one_collection(connection: Connection, name: str, query: Statement) -> CollectionRecord:
    row = None
    for spelling in spellings(name)[:1]:
        row = query.first(connection, {"spelling": spelling})
    if row is None:
        raise collection_not_found(name)
    record = collection_record(row)
    require_bound(record)
    return record


# The collection that work of this context is for.
_BOUND: ContextVar[CollectionRecord | None] = ContextVar("bound", default=None)


@contextmanager
def bound_to(collection: CollectionRecord) -> Iterator[None]:
    """Within this block the collection's name means this very collection. If it is deleted, one
    that is created under its name is not found: for work that lasts, as an import does."""
    token = _BOUND.set(collection)
    try:
        yield
    finally:
        _BOUND.reset(token)


def require_bound(record: CollectionRecord) -> None:
    """Raise CollectionNotFound if the context is bound to another collection of that name."""
    bound = _BOUND.get()
    if bound is not None and bound.name == record.name and not _is_same(bound, record):
        raise collection_not_found(record.name)


def _is_same(one: CollectionRecord, other: CollectionRecord) -> bool:
    return (one.database, one.key) == (other.database, other.key)


def collection_not_found(name: str) -> CollectionNotFound:
    """The error for a collection that does not exist, or that an access key is not for."""
    return CollectionNotFound(
        f"There is no collection '{name}'. Check the name, or create it with POST /v1/collections."
    )


def get_again(connection: Connection, known: CollectionRecord) -> CollectionRecord:
    """The same collection as it is now; another one made under its name is not the same.

    Raises CollectionNotFound, and EmbeddingSpaceMismatch where it changed its space meanwhile.
    """
    row = _BY_KEY.first(connection, {"key": known.key})
    if row is None or row.database != known.database:
        raise CollectionNotFound(
            f"The collection '{known.name}' was deleted meanwhile, or the database was restored."
        )
    return collection_record(row).require_space(known.embedding_space)


def collection_record(row: Any) -> CollectionRecord:
    return CollectionRecord(
        key=row.id,
        name=row.name,
        embedding_space=row.embedding_space,
        dimension=row.dimension,
        revision=row.revision,
        metadata=row.metadata,
        created_at=aware(row.created_at),
        policy=row.policy,
        calibration_id=row.calibration_id,
        stamp=row.stamp,
        database=row.database,
    )


def person_query() -> Select[Any]:
    held = (
        select(func.count())
        .select_from(templates)
        .where(templates.c.person == persons.c.id)
        .scalar_subquery()
    )
    return select(persons, held.label("templates"))


_PERSON = Statement(
    person_query().where(
        persons.c.collection == bindparam("of"),
        persons.c.person_id.in_([bindparam("as_given"), bindparam("composed")]),
    )
)


def find_person(
    connection: Connection, collection: CollectionRecord, person_id: str
) -> PersonRecord | None:
    """The person with exactly the given id, else the one with its Form C."""
    known = spellings(person_id)
    if not known:
        return None
    ids = {"of": collection.key, "as_given": known[0], "composed": known[-1]}
    found = {row.person_id: row for row in _PERSON.rows(connection, ids)}
    return next((person_record(found[one]) for one in known if one in found), None)


def get_person(
    connection: Connection, collection: CollectionRecord, person_id: str
) -> PersonRecord:
    found = find_person(connection, collection, person_id)
    if found is None:
        raise PersonNotFound(
            f"There is no person '{person_id}' in the collection '{collection.name}'; "
            "enroll them first."
        )
    return found


def person_record(row: Any) -> PersonRecord:
    return PersonRecord(
        key=row.id,
        person_id=row.person_id,
        metadata=row.metadata,
        templates=row.templates,
        created_at=aware(row.created_at),
        updated_at=aware(row.updated_at),
        active_at=None if row.active_at is None else aware(row.active_at),
        consent_until=None if row.consent_until is None else aware(row.consent_until),
    )


def face_query() -> Select[Any]:
    return select(
        templates.c.id,
        templates.c.person,
        templates.c.face_id,
        templates.c.quality,
        templates.c.created_at,
        persons.c.person_id,
    ).join(persons, persons.c.id == templates.c.person)


def get_face(connection: Connection, collection: CollectionRecord, face_id: str) -> FaceRecord:
    query = face_query().where(
        templates.c.collection == collection.key,
        templates.c.face_id.in_(spellings(face_id)[:1]),
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise FaceNotFound(f"There is no face '{face_id}' in the collection '{collection.name}'.")
    return face_record(row)


def face_record(row: Any) -> FaceRecord:
    created_at = aware(row.created_at)
    return FaceRecord(row.id, row.person, row.face_id, row.person_id, row.quality, created_at)


def load_templates(
    connection: Connection,
    collection: CollectionRecord,
    condition: Any,
    codec: EmbeddingRowCodec,
    *,
    limit: int | None = None,
) -> Templates:
    """Templates in ascending order of keys. Raises EncryptionKeyMissing or DamagedData."""
    query = codec.with_embedding(select(templates.c.id, templates.c.person).where(condition))
    rows = connection.execute(query.order_by(templates.c.id).limit(limit)).all()
    return to_templates(collection, rows, codec)


def to_templates(
    collection: CollectionRecord, rows: Sequence[Any], codec: EmbeddingRowCodec
) -> Templates:
    """Rows of such a query. Raises EncryptionKeyMissing or DamagedData."""
    return Templates(
        to_ids([row.id for row in rows]),
        to_ids([row.person for row in rows]),
        codec.vectors(collection, rows),
    )


def to_ids(values: Sequence[int]) -> Ids:
    return np.array(values, dtype=np.int64)


def count_rows(connection: Connection, table: Any, condition: Any) -> int:
    query = select(func.count()).select_from(table).where(condition)
    return int(connection.execute(query).scalar_one())


def fetch_page(
    connection: Connection,
    query: Select[Any],
    limit: int,
    column: str,
    most_shown: int = MAX_PAGE_BYTES,
) -> Page[Any]:
    """The next rows of a query, `limit` at most. A page ends early, but not before its first row,
    where that column's JSON has more than `most_shown` bytes, or MOST_STORED as it is stored."""
    rows: list[Any] = []
    shown = stored = 0
    query = query.limit(limit + 1).execution_options(yield_per=ROWS_AT_ONCE)
    with connection.execute(query) as result:
        for row in result:
            content = getattr(row, column)
            shown += len(orjson.dumps(content))
            stored += len(content.original) if isinstance(content, CorrectedMetadata) else 0
            full = shown > most_shown or stored > MOST_STORED
            if len(rows) == limit or (rows and full):
                return Page(rows, more=True)
            rows.append(row)
    return Page(rows, more=False)


def to_page(page: Page[Any], record: Callable[[Any], Any]) -> Page[Any]:
    return Page([record(row) for row in page.items], page.more)


def aware(moment: datetime) -> datetime:
    """SQLite gives times back without their zone; all we store are UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
