"""A deleted collection is gone for everybody at once, and its rows are deleted in transactions of
limited size, over every database."""

import itertools
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import func, select

from app.encryption.keys import new_key_line, parse_keys
from app.encryption.ring import KeyRing
from app.errors import CollectionNotFound, StoreUnavailable
from app.gallery.backup_bodies import dump, load
from app.store.audit_verification import verify_audit
from app.store.records import Erasure, NewTemplate, PersonTemplate
from app.store.sql import collection_removal, tables
from app.store.sql.audit_log import AuditWriter
from app.store.sql.collection_removal import CollectionRemoval
from app.store.sql.lookups import is_live
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, KEEPS_CROPS, SPACE, open_store, template
from tests.writing import store_person

Draw = Callable[[int], NDArray[np.float32]]
ROOT = Path(__file__).parents[2]
FACES = 1_200  # more than two transactions delete
OF_COLLECTIONS = (
    tables.persons, tables.templates, tables.changes, tables.idempotency, tables.calibrations,
    tables.metadata_terms, tables.crops, tables.alternate_embeddings,
)  # fmt: skip
# Deletes a collection, and is killed after two transactions that delete rows.
KILLED = """
import os, signal, sys
from app.store.backends import create_engine
from app.store.sql.audit_log import AuditWriter
from app.store.sql.collection_removal import CollectionRemoval
from app.store.sql.lookups import is_live
from app.store.store import Store

asked = []
def clock():
    asked.append(0)
    if len(asked) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.0

CollectionRemoval(Store(create_engine(sys.argv[1])).database, clock).delete("staff")
"""


def fill(store: Store, name: str, vectors: NDArray[np.float32]) -> None:
    store.collections.create(name, SPACE, DIMENSION, {"site": "north"}, KEEPS_CROPS)
    rows = [
        PersonTemplate(f"p{i}", {"n": i % 7}, NewTemplate(vector, f"{i}", crop=b"png"))
        for i, vector in enumerate(vectors)
    ]
    store.imports.enroll(name, rows, SPACE)


def rows_held(store: Store) -> dict[str, int]:
    with store.database.reading() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in OF_COLLECTIONS
        }


def deleted_after(store: Store, transactions: int) -> Erasure:
    """Delete `staff` as a process that has no time for more transactions."""
    times: Iterator[float] = iter([0.0] * transactions + [collection_removal.DELETION_S + 1])
    return CollectionRemoval(store.database, lambda: next(times)).delete("staff").erased


def deleted_collections(store: Store) -> list[int]:
    """Those of which there are still rows."""
    with store.database.reading() as connection:
        return list(connection.execute(select(tables.collections.c.id).where(~is_live())).scalars())


def finish(store: Store) -> None:
    """What maintenance does, one round after the other."""
    while deleted_collections(store):
        store.collections.removal.round()


def test_it_is_gone_for_everybody_before_its_rows_are(store: Store, directions: Draw) -> None:
    fill(store, "staff", directions(FACES))
    record, before = store.collections.get("staff"), store.collections.state()
    store_person(store, "default", "ada", None, [template(directions(1)[0], "a")])
    kept = store.collections.get("default")
    assert deleted_after(store, 1) is Erasure.PENDING
    left = rows_held(store)
    assert FACES / 2 < left["templates"] < FACES  # bounded, and not over
    assert left["crops"] == left["templates"] - 1
    hidden = f"/{record.key}"
    for ask in (
        lambda: store.collections.get("staff"),
        lambda: store.collections.get(hidden),
        lambda: store.collections.by_key(record.key),
        lambda: store.collections.delete("staff"),
        lambda: store.collections.update(hidden, {}, None),
        lambda: store.changes.templates_after(record, 0, 10),
        lambda: store.persons.get(hidden, "p1"),
    ):
        with pytest.raises(CollectionNotFound):
            ask()
    assert store.collections.page(None, 10).items == [kept]
    assert store.collections.state() != before
    assert store.collections.marks().keys() == {kept.key} == store.collections.large(1).keys()
    fill(store, "staff", directions(3))  # its name is free
    assert store.database.eraser.pending_s() > 0
    finish(store)
    assert store.database.eraser.pending_s() == 0 or not store.database.in_process
    assert rows_held(store)["templates"] == 4
    assert store.collections.count(store.collections.get("staff")).templates == 3
    assert store.collections.get("default") == kept


@pytest.mark.slow
def test_what_is_left_of_it_is_in_no_backup_and_needs_no_key(
    engine_url: str, store: Store, directions: Draw
) -> None:
    ring = KeyRing(parse_keys(new_key_line("k").encode(), "test"))
    store = open_store(engine_url, ring=ring)
    fill(store, "staff", directions(FACES))
    assert set(store.encryption.state().persons_by_key) == {"k"}
    assert deleted_after(store, 1) is Erasure.PENDING
    assert rows_held(store)["templates"]
    assert not store.encryption.state().persons_by_key
    open_store(engine_url).encryption.check_keys()  # without a key
    kept = {
        body["table"]: len(body["rows"]) for body in dump(store.database.engine) if "table" in body
    }
    assert kept == {"collections": 1}


@pytest.mark.slow
def test_a_killed_deletion_is_finished_by_the_next_process(
    engine_url: str, store: Store, directions: Draw
) -> None:
    fill(store, "staff", directions(FACES))
    done = subprocess.run([sys.executable, "-c", KILLED, engine_url], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert 0 < rows_held(store)["templates"] < FACES
    with pytest.raises(CollectionNotFound):
        store.collections.get("staff")
    again = open_store(engine_url)
    finish(again)
    assert set(rows_held(again).values()) == {0}
    entries = [one.members for one in again.audit.page(0, 10_000)[0][-5:]]
    (deletion,) = (one for one in entries if one["action"] == "collection.deleted")
    assert deletion["collection"] == "staff"
    assert deletion["details"] == {"persons": FACES, "templates": FACES}
    assert verify_audit(again.audit.everything()).problem is None


def test_face_ids_of_a_deleted_collection_are_free_at_once(store: Store, directions: Draw) -> None:
    """Its export is imported again before all of its rows are deleted."""
    vectors = directions(FACES)
    rows = [
        PersonTemplate(f"p{i}", None, NewTemplate(vector, f"{i}"), str(uuid.UUID(int=i)))
        for i, vector in enumerate(vectors)
    ]
    store.collections.create("staff", SPACE, DIMENSION, {})
    store.imports.enroll("staff", rows, SPACE)
    assert deleted_after(store, 1) is Erasure.PENDING
    store.collections.create("staff", SPACE, DIMENSION, {})
    again = [
        face
        for start in range(0, FACES, 500)
        for face in store.imports.enroll("staff", rows[start : start + 500], SPACE)
    ]
    assert again == [row.face_id for row in rows]
    finish(store)
    assert store.collections.count(store.collections.get("staff")).templates == FACES


def test_nothing_counts_or_names_what_is_left(
    engine_url: str, store: Store, directions: Draw
) -> None:
    fill(store, "staff", directions(FACES))
    deleted_after(store, 1)
    state = store.encryption.state()
    assert (state.plain, state.plain_crops, state.plain_alternates) == (0, 0, 0)
    store.collections.delete("default")
    load(store.database.engine, dump(store.database.engine), replace=False)
    assert rows_held(store)["templates"] == 0


def test_a_transaction_that_is_lost_skips_no_rows(store: Store, directions: Draw) -> None:
    """They would be deleted with the collection, in one long transaction."""
    fill(store, "staff", directions(FACES))
    deleted_after(store, 1)
    # By its clock each transaction takes longer than a round may.
    removal = CollectionRemoval(store.database, itertools.count(0, 10).__next__)

    def lose(*_: object) -> None:
        raise StoreUnavailable("The connection to the database was lost.")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(AuditWriter, "append", lose)
        for _ in range(10):
            with pytest.raises(StoreUnavailable):
                removal.round()
    held = [rows_held(store)["templates"]]
    while deleted_collections(store):
        removal.round()
        held.append(rows_held(store)["templates"])
    assert max(-np.diff(held)) == 500


def test_the_deletion_of_another_collection_hides_nothing_that_is_left(
    store: Store, directions: Draw
) -> None:
    fill(store, "staff", directions(FACES))
    fill(store, "small", directions(2))
    deleted_after(store, 1)
    store.collections.delete("small")
    assert store.database.eraser.pending_s() > 0
