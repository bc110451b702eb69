"""Withdrawn consents that no metadata has any more: of persons who were deleted or renamed, or who
gave another consent since. A list that is imported again does not know of the withdrawal.

They are stored as digests of the person's id and the consent's reference together: neither can be
read from them, but somebody who has the database can test a guess of both.
"""

from collections.abc import Collection
from hashlib import blake2b

from sqlalchemy import Connection, insert, select

from app.store.identifiers import composed
from app.store.records import CollectionRecord
from app.store.sql.lookups import MAX_KEYS
from app.store.sql.tables import withdrawn_consents

DIGEST_BYTES = 32
Given = tuple[str, str]  # the id of a person and the reference of their consent


def remember(
    connection: Connection, collection: CollectionRecord, consents: Collection[Given]
) -> None:
    """Store that consents were withdrawn. The caller has locked the collection."""
    new = set(consents) - remembered(connection, collection, consents)
    if new:
        rows = [{"collection": collection.key, "digest": digest} for digest in map(digest_of, new)]
        connection.execute(insert(withdrawn_consents), rows)


def remembered(
    connection: Connection, collection: CollectionRecord, consents: Collection[Given]
) -> set[Given]:
    """Those of the consents that were stored as withdrawn."""
    by_digest = {digest_of(one): one for one in consents}
    digests, found = list(by_digest), set()
    for start in range(0, len(digests), MAX_KEYS):
        query = select(withdrawn_consents.c.digest).where(
            withdrawn_consents.c.collection == collection.key,
            withdrawn_consents.c.digest.in_(digests[start : start + MAX_KEYS]),
        )
        found |= {by_digest[bytes(row.digest)] for row in connection.execute(query)}
    return found


def digest_of(consent: Given) -> bytes:
    """What is stored of a withdrawn consent."""
    person_id, reference = consent
    text = f"{composed(person_id)}\0{reference.strip()}"
    content = text.encode(errors="surrogatepass")
    return blake2b(content, digest_size=DIGEST_BYTES, person=b"withdrawn").digest()
