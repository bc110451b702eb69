"""A restore does not undo the withdrawals of consents that the replaced database knows."""

from collections.abc import Mapping, Set

from sqlalchemy import Connection, select, update

from app.store.records import CollectionRecord
from app.store.sql.consents import MEMBER, WITHDRAWN, consent_of, note_consent
from app.store.sql.lookups import collection_query, collection_record
from app.store.sql.required_consents import with_withdrawn_consent, withdrawn_in
from app.store.sql.tables import persons
from app.store.sql.terms import index_again
from app.store.sql.withdrawn import digest_of, remember

Withdrawals = Mapping[str, Set[bytes]]  # digests of consents, by the name of the collection


def withdrawals(connection: Connection) -> Withdrawals:
    """What is remembered, and what the metadata of persons says."""
    found = {}
    for collection in _collections(connection):
        query = select(persons.c.person_id, persons.c.metadata).where(
            persons.c.collection == collection.key, persons.c.consent_until == WITHDRAWN
        )
        found[collection.name] = withdrawn_in(connection, collection) | {
            digest_of(row.person_id, consent.reference)
            for row in connection.execute(query)
            if (consent := consent_of(row.metadata)) is not None
        }
    return found


def withdraw_again(connection: Connection, known: Withdrawals) -> int:
    """Remember withdrawals for the restored collections of the same names, and end such consents of
    restored persons. Returns how many were ended."""
    ended = 0
    for collection in _collections(connection):
        digests = known.get(collection.name, frozenset())
        remember(connection, collection, digests)
        for person in with_withdrawn_consent(connection, collection, digests):
            # In the metadata too: a later backup, an export and the person's record say so.
            consent = {**person.metadata[MEMBER], "withdrawn": True}
            metadata = {**person.metadata, MEMBER: consent}
            mine = update(persons).where(persons.c.id == person.id)
            connection.execute(mine.values(metadata=metadata, consent_until=WITHDRAWN))
            index_again(connection, collection.key, person.id, metadata)
            note_consent(connection, collection.name, person.id, WITHDRAWN)
            ended += 1
    return ended


def _collections(connection: Connection) -> list[CollectionRecord]:
    return [collection_record(row) for row in connection.execute(collection_query()).all()]
