"""Everything that is stored about one person: the answer to a request for access (GDPR Art. 15)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.errors import PersonNotFound
from app.store.records import (
    AlternateEmbedding,
    DeclaredPair,
    ExportedTemplate,
    KeptAnswer,
    PersonRecord,
)
from app.store.sql.audit_log import AuditEntry
from app.store.sql.consents import Consent, consent_of
from app.store.store import Store

MOST_ENTRIES = 1000  # the newest ones
# Where there may be more about a person.
ELSEWHERE = [
    "backups (`likeness backup`) and exports (`likeness export`), wherever they are kept",
    "archives of imports that have not ended",
    "reports of imports that `likeness import` wrote to a file",
    "attestations (`likeness attest`) and evaluations of this collection, wherever they are kept",
]


@dataclass(frozen=True, slots=True)
class HeldData:
    """What the database holds about a person: the person with the consent, the declared pairs, the
    kept answers of enrollments, the newest entries of the audit log, and some faces with embeddings
    and crops. `alternates`: the faces' embeddings in other spaces, by template key. `more`: whether
    there are more faces."""

    collection: str
    person: PersonRecord
    consent: Consent | None
    embedding_space: str
    faces: Sequence[ExportedTemplate]
    alternates: Mapping[int, Sequence[AlternateEmbedding]]
    more: bool
    answers: Sequence[KeptAnswer]
    pairs: Sequence[DeclaredPair]
    entries: Sequence[AuditEntry]
    older_entries: bool


def held_data(
    store: Store, collection: str, person_id: str, after: int = 0, limit: int = 100
) -> HeldData:
    """What is held about a person, with `limit` faces after the template key `after`. Raises
    CollectionNotFound, PersonNotFound (also if the person is deleted or renamed meanwhile),
    EncryptionKeyMissing or DamagedData."""
    record = store.collections.get(collection)
    person = store.persons.get(collection, person_id)
    found = store.embeddings.exported(collection, after, limit + 1, person.key)
    faces = found[:limit]
    keys = [face.template_key for face in faces]
    entries, older = store.audit.history(collection, person.key, MOST_ENTRIES)
    held = HeldData(
        record.name,
        person,
        consent_of(person.metadata),
        record.embedding_space,
        faces,
        store.alternate_embeddings.of_person(record, person.key, keys),
        len(found) > limit,
        store.idempotency.of_person(person.key),
        store.pairs.by_key(person.key),
        entries,
        older,
    )
    # It was read in several transactions: a part must not be taken for all.
    if store.persons.get(collection, person_id).key != person.key:
        raise PersonNotFound(f"The person '{person_id}' was deleted or renamed meanwhile.")
    return held


def note_export(store: Store, held: HeldData, faces: int) -> None:
    """Write to the audit log that so many faces of a person were copied, with their embeddings.
    Raises StoreFull and StoreUnavailable: a copy that is not in the log must not be given."""
    store.audit.record("person.exported", held.collection, held.person.key, faces=faces)
