"""Until when the consents of persons are valid: derived from their metadata when it is written, so
that ended ones are found without reading all metadata."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, cast, func, or_, select, update

from app.errors import ConsentMissing
from app.store.consent import (
    FORM,
    WITHDRAWN,
    WITHOUT_END,
    consent_until,
    needs_consent,
)
from app.store.records import CollectionRecord
from app.store.sql.audit_log import note
from app.store.sql.lookups import aware
from app.store.sql.tables import persons
from app.types import JsonObject

SHOWN = 10
PERSONS_AT_ONCE = 1_000


def keep_consent(
    connection: Connection, collection: CollectionRecord, person: int, metadata: JsonObject
) -> None:
    """Store until when the consent in a person's new metadata is valid, and note a change of it.
    Raises ConsentMissing if the collection needs one and there is none, valid or ended."""
    after = consent_until(metadata)
    if after is None and needs_consent(collection):
        raise ConsentMissing(
            f"The collection '{collection.name}' needs the consent of each person, so metadata "
            f"without one is refused. {FORM} Delete the person to erase them."
        )
    query = select(persons.c.consent_until).where(persons.c.id == person)
    stored = connection.execute(query).scalar_one()
    before = None if stored is None else aware(stored)
    if before == after:
        return
    connection.execute(update(persons).where(persons.c.id == person).values(consent_until=after))
    note_consent(connection, collection.name, person, after)


def note_consent(
    connection: Connection, collection: str, person: int, until: datetime | None
) -> None:
    """Note what became of a person's consent: its last day (of UTC) or null, never its
    reference."""
    if until is None:
        note(connection, "consent.removed", collection, person)
    elif until == WITHDRAWN:
        note(connection, "consent.withdrawn", collection, person)
    else:
        last = until - timedelta(microseconds=1)
        day = None if until == WITHOUT_END else f"{last:%Y-%m-%d}"
        note(connection, "consent.recorded", collection, person, last_day=day)


def without_consent(now: datetime) -> ColumnElement[bool]:
    """The condition that a person has no consent that is valid now."""
    return or_(persons.c.consent_until.is_(None), persons.c.consent_until <= now)


def require_all_consents(
    connection: Connection, collection: CollectionRecord, now: datetime
) -> None:
    """Raise ConsentMissing unless every person of a collection has a consent: those without one
    would be erased."""
    wanted = persons.c.collection == collection.key, without_consent(now)
    count = connection.execute(
        select(func.count()).select_from(persons).where(*wanted)
    ).scalar_one()
    if not count:
        return
    query = select(persons.c.person_id).where(*wanted).order_by(persons.c.id).limit(SHOWN)
    ids = list(connection.execute(query).scalars())
    raise ConsentMissing(
        f"{count:,} persons of '{collection.name}' have no consent that is valid now, such as "
        f"'{ids[0]}'; with consent_required they would be erased. Give each a consent, or delete "
        f"them, then set the policy. {FORM}",
        {"persons": count, "person_ids": ids},
    )


def rebuild_consents(connection: Connection) -> None:
    """Derive every person's `consent_until` again."""
    connection.execute(update(persons).values(consent_until=None))
    for row in _with_member(connection):
        until = consent_until(row.metadata)
        if until is not None:
            mine = update(persons).where(persons.c.id == row.id)
            connection.execute(mine.values(consent_until=until))


def _with_member(connection: Connection) -> Iterator[Any]:
    """The persons whose metadata may have a consent."""
    after = 0
    query = select(persons.c.id, persons.c.metadata).where(
        cast(persons.c.metadata, Text).like('%"consent"%')
    )
    while rows := connection.execute(
        query.where(persons.c.id > after).order_by(persons.c.id).limit(PERSONS_AT_ONCE)
    ).all():
        yield from rows
        after = rows[-1].id
