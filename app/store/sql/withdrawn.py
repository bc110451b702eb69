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


def remember(
    connection: Connection, collection: CollectionRecord, digests: Collection[bytes]
) -> None:
    """Store that consents were withdrawn. The caller has locked the collection."""
    if new := set(digests) - remembered(connection, collection, digests):
        rows = [{"collection": collection.key, "digest": digest} for digest in new]
        connection.execute(insert(withdrawn_consents), rows)


def remembered(
    connection: Connection, collection: CollectionRecord, digests: Collection[bytes]
) -> set[bytes]:
    """Those of the digests that are stored."""
    wanted, found = list(digests), set[bytes]()
    for start in range(0, len(wanted), MAX_KEYS):
        query = select(withdrawn_consents.c.digest).where(
            withdrawn_consents.c.collection == collection.key,
            withdrawn_consents.c.digest.in_(wanted[start : start + MAX_KEYS]),
        )
        found.update(map(bytes, connection.scalars(query)))
    return found


def digest_of(person_id: str, reference: str) -> bytes:
    """What is stored of a withdrawn consent: of the id and the reference together, both in Form
    C, the reference without spaces around it."""
    text = f"{composed(person_id)}\0{composed(reference.strip())}"
    content = text.encode(errors="surrogatepass")
    return blake2b(content, digest_size=DIGEST_BYTES, person=b"withdrawn").digest()
