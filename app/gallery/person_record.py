"""Everything that is stored about one person: the answer to a request for access (GDPR Art. 15)."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.store.records import DeclaredPair, ExportedTemplate, PersonRecord
from app.store.sql.audit_log import AuditEntry
from app.store.store import Store

MOST_PAIRS = 100  # one person has no more
MOST_ENTRIES = 1000  # the newest ones


@dataclass(frozen=True, slots=True)
class HeldData:
    """What the database holds about a person: the person, the declared pairs, the newest entries of
    the audit log, and some faces with embeddings and crops. `more`: whether there are more faces.
    """

    person: PersonRecord
    embedding_space: str
    faces: Sequence[ExportedTemplate]
    more: bool
    pairs: Sequence[DeclaredPair]
    entries: Sequence[AuditEntry]
    older_entries: bool


def held_data(
    store: Store, collection: str, person_id: str, after: int = 0, limit: int = 100
) -> HeldData:
    """What is held about a person, with `limit` faces after the template key `after`. Raises
    CollectionNotFound, PersonNotFound, EncryptionKeyMissing or DamagedData."""
    record = store.collections.get(collection)
    person = store.persons.get(collection, person_id)
    faces = store.embeddings.exported(collection, after, limit + 1, person.key)
    entries, older = store.audit.history(collection, person.key, MOST_ENTRIES)
    return HeldData(
        person,
        record.embedding_space,
        faces[:limit],
        len(faces) > limit,
        store.pairs.of_person(collection, person_id, None, MOST_PAIRS).items,
        entries,
        older,
    )
