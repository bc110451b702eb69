"""What a collection that begins to need consents, and a restore, check of all persons."""

from collections.abc import Iterator, Set
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from app.errors import ConsentMissing
from app.store.records import CollectionRecord
from app.store.sql.consents import FORM, WITHDRAWN, consent_of, without_consent
from app.store.sql.lookups import aware
from app.store.sql.tables import persons, withdrawn_consents
from app.store.sql.withdrawn import digest_of

SHOWN = 10
PERSONS_AT_ONCE = 1_000


def require_all_consents(
    connection: Connection, collection: CollectionRecord, now: datetime
) -> None:
    """Raise ConsentMissing unless every person of a collection has a consent that is valid and was
    not withdrawn before: those without one would be deleted, or refused later."""
    wanted = persons.c.collection == collection.key, without_consent(now)
    count = connection.execute(
        select(func.count()).select_from(persons).where(*wanted)
    ).scalar_one()
    query = select(persons.c.person_id).where(*wanted).order_by(persons.c.id).limit(SHOWN)
    ids = list(connection.execute(query).scalars())
    digests = withdrawn_in(connection, collection)
    with_withdrawn = [
        row.person_id
        for row in with_withdrawn_consent(connection, collection, digests)
        if aware(row.consent_until) > now  # the others are counted above
    ]
    count, ids = count + len(with_withdrawn), [*ids, *with_withdrawn][:SHOWN]
    if not count:
        return
    raise ConsentMissing(
        f"{count:,} persons of '{collection.name}' have no consent that is valid now, or one that "
        f"they withdrew before, such as '{ids[0]}'; with consent_required they would be deleted. "
        f"Give each a new consent, or delete them, then set the policy. {FORM}",
        {"persons": count, "person_ids": ids},
    )


def withdrawn_in(connection: Connection, collection: CollectionRecord) -> set[bytes]:
    """The digests of the withdrawn consents that are remembered of a collection."""
    of_it = withdrawn_consents.c.collection == collection.key
    return set(map(bytes, connection.scalars(select(withdrawn_consents.c.digest).where(of_it))))


def with_withdrawn_consent(
    connection: Connection, collection: CollectionRecord, digests: Set[bytes]
) -> Iterator[Any]:
    """The persons (id, person_id, consent_until, metadata) whose consent has one of the digests,
    although their metadata does not say that it was withdrawn."""
    after = 0
    columns = persons.c.id, persons.c.person_id, persons.c.consent_until, persons.c.metadata
    query = select(*columns).where(
        persons.c.collection == collection.key,
        persons.c.consent_until.is_not(None),
        persons.c.consent_until != WITHDRAWN,
    )
    while digests and (
        rows := connection.execute(
            query.where(persons.c.id > after).order_by(persons.c.id).limit(PERSONS_AT_ONCE)
        ).all()
    ):
        for row in rows:
            consent = consent_of(row.metadata)
            if consent is not None and digest_of(row.person_id, consent.reference) in digests:
                yield row
        after = rows[-1].id
