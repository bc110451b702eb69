"""A restore does not undo the withdrawals of consents that the replaced database knows."""

from collections import defaultdict
from collections.abc import Mapping, Set

from sqlalchemy import Connection, insert, select, update

from app.store.sql.consents import WITHDRAWN, consent_of, note_consent
from app.store.sql.lookups import is_live
from app.store.sql.tables import collections, persons, withdrawn_consents
from app.store.sql.withdrawn import digest_of

Withdrawals = Mapping[str, Set[bytes]]  # digests of consents, by the name of the collection


def withdrawals(connection: Connection) -> Withdrawals:
    """Those that are remembered, and those in the metadata of persons."""
    found = defaultdict[str, set[bytes]](set)
    remembered = select(collections.c.name, withdrawn_consents.c.digest).join(
        collections, collections.c.id == withdrawn_consents.c.collection
    )
    for row in connection.execute(remembered.where(is_live())):
        found[row.name].add(bytes(row.digest))
    present = select(collections.c.name, persons.c.person_id, persons.c.metadata).join(
        collections, collections.c.id == persons.c.collection
    )
    ended = persons.c.consent_until == WITHDRAWN
    for name, person_id, metadata in connection.execute(present.where(is_live(), ended)).all():
        if (consent := consent_of(metadata)) is not None:
            found[name].add(digest_of(person_id, consent.reference))
    return found


def withdraw_again(connection: Connection, known: Withdrawals) -> int:
    """Remember withdrawals for the restored collections of the same names, and end such consents of
    restored persons. Returns how many were ended."""
    ended = 0
    restored = select(collections.c.id, collections.c.name).where(
        is_live(), collections.c.name.in_(known)
    )
    for key, name in connection.execute(restored).all():
        digests = select(withdrawn_consents.c.digest).where(withdrawn_consents.c.collection == key)
        if new := known[name] - set(map(bytes, connection.scalars(digests))):
            rows = [{"collection": key, "digest": digest} for digest in new]
            connection.execute(insert(withdrawn_consents), rows)
        valid = select(persons.c.id, persons.c.person_id, persons.c.metadata).where(
            persons.c.collection == key,
            persons.c.consent_until.is_not(None),
            persons.c.consent_until != WITHDRAWN,
        )
        for person in connection.execute(valid).all():
            consent = consent_of(person.metadata)
            if consent and digest_of(person.person_id, consent.reference) in known[name]:
                mine = update(persons).where(persons.c.id == person.id)
                connection.execute(mine.values(consent_until=WITHDRAWN))
                note_consent(connection, name, person.id, WITHDRAWN)
                ended += 1
    return ended
