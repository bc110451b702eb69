"""Enrolling and deleting as the service does it, for tests that have a gallery or a store, and no
photos."""

from collections.abc import Sequence

from app.gallery.gallery import Gallery
from app.store.records import (
    DeletionCounts,
    IdempotencyRequest,
    NewTemplate,
    PersonEnrollment,
    StoredTemplate,
)
from app.store.store import Store
from app.types import JsonObject


def enroll_person(
    gallery: Gallery,
    collection: str,
    person_id: str,
    metadata: JsonObject | None,
    templates: Sequence[NewTemplate],
    *,
    idempotency: IdempotencyRequest | None = None,
) -> Sequence[StoredTemplate]:
    """Store templates of one person, and update the index if that did not."""
    one = PersonEnrollment(person_id, metadata, templates, idempotency)
    (stored,), followed = gallery.enroll_together(collection, [one])
    assert not isinstance(stored, Exception), "the error of a single one is raised"
    if not followed:
        gallery.follow(collection)
    return stored


def store_person(
    store: Store,
    collection: str,
    person_id: str,
    metadata: JsonObject | None,
    templates: Sequence[NewTemplate],
    *,
    idempotency: IdempotencyRequest | None = None,
    space: str | None = None,
) -> Sequence[StoredTemplate]:
    """Store templates of one person, without any index."""
    one = PersonEnrollment(person_id, metadata, templates, idempotency)
    (stored,) = store.templates.enroll_together(collection, [one], space).outcomes
    assert not isinstance(stored, Exception), "the error of a single one is raised"
    return stored


def delete_person(gallery: Gallery, collection: str, person_id: str) -> DeletionCounts:
    """Delete a person from the database, then from the index and its snapshot."""
    deletion = gallery.store.persons.delete(collection, person_id)
    return deletion.also(gallery.follow_deletion(collection))


def delete_collection(gallery: Gallery, name: str) -> DeletionCounts:
    """Delete a collection with everything in it, then its index and snapshot."""
    record = gallery.store.collections.get(name)
    deletion = gallery.store.collections.delete(name)
    return deletion.also(gallery.forget(record))
