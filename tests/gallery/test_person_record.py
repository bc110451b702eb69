"""The record of a person has everything that the database holds about them."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from app.encryption.keys import new_key_line, parse_keys
from app.encryption.ring import KeyRing
from app.errors import PersonNotFound
from app.gallery.person_record import HeldData, held_data
from app.store.records import IdempotencyRequest, NewTemplate
from app.store.sql import tables
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_store
from tests.writing import store_person

# Of each column that belongs to a person: what a record has of it, or why it has nothing.
RECORDED = {
    "persons": {"person_id", "metadata", "created_at", "updated_at", "active_at", "consent_until"},
    "templates": {"face_id", "embedding", "content_digest", "quality", "created_at"},
    "crops": {"crop"},
    "spares": {"embedding_space", "embedding"},
    "idempotency": {"key", "answer", "created_at"},
    "declared_pairs": {"created_at"},  # with the other person's id
    "audit_entries": {"at", "actor", "action", "content"},
}
NUMBER = "a number of the database, which leads to rows that the record has"
KEY = "a secret, or says which secret encrypts a row"
LEFT_OUT = {
    "persons.id": NUMBER, "persons.collection": NUMBER, "persons.data_key": KEY,
    "persons.key_id": KEY,
    "metadata_terms.term": "derived from the metadata", "metadata_terms.person": NUMBER,
    "declared_pairs.person_a": NUMBER, "declared_pairs.person_b": NUMBER,
    "templates.id": NUMBER, "templates.collection": NUMBER, "templates.person": NUMBER,
    "templates.sealed": KEY, "crops.template": NUMBER, "crops.sealed": KEY,
    "spares.template": NUMBER, "spares.sealed": KEY,
    "changes.collection": NUMBER, "changes.revision": NUMBER, "changes.template": NUMBER,
    "changes.kind": "whether a template came or went", "changes.stamp": "random",
    "changes.created_at": "that of the template, or of its deletion",
    "withdrawn_consents.collection": NUMBER,
    "withdrawn_consents.digest": "names nobody; the record has the consent that is in force",
    "idempotency.collection": NUMBER, "idempotency.person": NUMBER,
    "idempotency.request_digest": "a digest of the call, whose answer the record has",
    "audit_entries.sequence": NUMBER, "audit_entries.collection": "that of the person",
    "audit_entries.person": NUMBER, "audit_entries.digest": "chains the entries",
}  # fmt: skip
# Tables that have nothing about enrolled persons.
OF_NOBODY = {
    "database", "collections", "calibrations", "encryption_keys", "access_keys", "access_usage",
    "access_state", "audit_head",
}  # fmt: skip


def test_each_column_is_in_the_record_or_has_a_reason() -> None:
    """A new table or column must be added to the record, or to the list of reasons above."""
    known = {f"{table}.{column}" for table, columns in RECORDED.items() for column in columns}
    columns = {
        f"{table.name}.{column.name}"
        for table in tables.metadata.tables.values()
        if table.name not in OF_NOBODY
        for column in table.columns
    }
    assert known.isdisjoint(LEFT_OUT)
    assert columns == known | set(LEFT_OUT)


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def held_store(request: pytest.FixtureRequest, engine_url: str) -> Store:
    ring = KeyRing(parse_keys(new_key_line("k").encode(), "test")) if request.param else None
    return open_store(engine_url, ring=ring)


def direction(number: int) -> Any:
    return np.eye(DIMENSION, dtype=np.float32)[number]


def filled(store: Store) -> HeldData:
    """The record of Ada, about whom every table has something."""
    store.collections.create(
        "staff", SPACE, DIMENSION, {}, {"retention_days": 30, "keep_crops": True}
    )
    metadata = {"team": "red", "consent": {"reference": "form 17", "expires": "2030-01-01"}}
    new = NewTemplate(direction(0), "9f" * 32, {"sharpness": 210.5}, b"a crop")
    kept = IdempotencyRequest("her key", "d" * 64, lambda _: {"person_id": "ada"})
    (stored,) = store_person(store, "staff", "ada", metadata, [new], idempotency=kept)
    store_person(store, "staff", "bob", None, [NewTemplate(direction(2), "aa" * 32)])
    store.pairs.declare("staff", "ada", "bob")
    for face in store.templates.page("staff", None, None, 9).items:
        number = 1 if face.face_id == stored.face.face_id else 3
        store.alternate_embeddings.put("staff", "es-other", {face.template_key: direction(number)})
    return held_data(store, "staff", "ada")


def test_what_every_table_has(held_store: Store) -> None:
    held = filled(held_store)
    (face,) = held.faces
    assert [face.embedding.tolist(), face.crop] == [direction(0).tolist(), b"a crop"]
    assert face.quality == {"sharpness": 210.5}
    assert face.content_digest == (None if held_store.database.ring else "9f" * 32)
    ((other,),) = held.alternates.values()
    assert [other.embedding_space, other.embedding.tolist()] == ["es-other", direction(1).tolist()]
    (answer,) = held.answers
    assert [answer.key, answer.answer] == ["her key", {"person_id": "ada"}]
    assert held.consent is not None
    assert held.consent.reference == "form 17"
    assert held.person.consent_until == datetime(2030, 1, 2, tzinfo=UTC)
    assert held.person.active_at is not None
    assert [pair.other_id for pair in held.pairs] == ["bob"]
    actions = {entry.members["action"] for entry in held.entries}
    assert {"person.enrolled", "consent.recorded", "pair.declared"} <= actions


@pytest.mark.parametrize("takes_the_id", [False, True])
def test_a_person_who_is_deleted_meanwhile(
    held_store: Store, engine_url: str, *, takes_the_id: bool
) -> None:
    filled(held_store)
    other, done = open_store(engine_url), list[str]()

    def delete(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if " persons" in statement and not done:
            done.append(statement)
            other.persons.delete("staff", "ada")
            if takes_the_id:
                other.persons.create("staff", "ada", {})

    engine = held_store.database.engine
    event.listen(engine, "after_cursor_execute", delete)
    with pytest.raises(PersonNotFound):
        held_data(held_store, "staff", "ada")
    event.remove(engine, "after_cursor_execute", delete)
    assert done


def test_nothing_of_others(held_store: Store) -> None:
    text = str(asdict(filled(held_store)))
    assert "aa" * 32 not in text
    assert str(direction(2).tolist()) not in text
