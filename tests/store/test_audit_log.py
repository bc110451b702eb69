"""The audit log: an entry for each change, in its transaction, in a chain that shows tampering."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, delete, text, update

from app.access.keys import KeyLimits, NewKey, Scope
from app.access.store import AccessKeyStore
from app.errors import DamagedData, PersonExists
from app.store.actor import acting_as
from app.store.audit_verification import exported, read_export, verify_audit
from app.store.backends import create_engine
from app.store.database import Database
from app.store.schema import migrate
from app.store.sql.audit_log import DATABASE_RESTORED, AuditFilter
from app.store.sql.tables import audit_entries, audit_head
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, template
from tests.writing import store_person

KEY = bytes(range(32))


@pytest.fixture
def engine(engine_url: str) -> Iterator[Engine]:
    engine = create_engine(engine_url)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> Store:
    store = Store(engine, audit_key=KEY)
    store.collections.create("staff", "es-test", 4, {})
    return store


def enroll(store: Store, person_id: str, seed: float = 1.0) -> None:
    vector = np.array([seed, 0, 0, 1], np.float32)
    store_person(store, "staff", person_id, None, [template(vector, person_id)])


def actions(store: Store) -> list[str]:
    return [one.members["action"] for one in store.audit.page(0, 1000)[0]]


def entries_of(store: Store) -> list[dict[str, Any]]:
    return [one.members for one in store.audit.page(0, 1000)[0]]


class TestEntries:
    def test_every_change_of_the_gallery(self, store: Store) -> None:
        enroll(store, "ada")
        enroll(store, "bob", 2.0)
        enroll(store, "eve", 3.0)
        store.persons.update("staff", "ada", {"team": "red"}, new_id="ada.l")
        store.pairs.declare("staff", "ada.l", "bob")
        store.pairs.withdraw("staff", "bob", "ada.l")
        (face,) = store.templates.page("staff", "bob", None, 9).items
        store.corrections.move_face("staff", face.face_id, "ada.l")
        store.templates.delete("staff", face.face_id)
        store.corrections.merge_persons("staff", "eve", "bob")
        store.persons.delete("staff", "ada.l")
        store.collections.update("staff", {"site": 1}, None)
        store.calibrations.set(store.collections.get("staff"), "cal-1", {})
        store.calibrations.clear("staff")
        store.collections.delete("staff")
        assert actions(store) == [
            "collection.created", "person.enrolled", "person.enrolled", "person.enrolled",
            "person.metadata_replaced", "person.renamed", "pair.declared", "pair.declared",
            "pair.withdrawn", "pair.withdrawn",
            "face.moved", "face.moved", "face.deleted", "person.merged", "person.merged",
            "person.deleted", "collection.changed",
            "calibration.set", "calibration.cleared", "collection.deleted",
        ]  # fmt: skip
        assert verify_audit(store.audit.everything(), KEY).problem is None

    def test_a_policy_is_there_before_and_after_its_change(self, store: Store) -> None:
        store.collections.create("guarded", SPACE, DIMENSION, {}, {"consent_required": True})
        store.collections.update("guarded", None, {"retention_days": 30})
        store.collections.update("guarded", {"site": 1}, None)
        created, changed, again = (one["details"] for one in entries_of(store)[-3:])
        assert created == {
            "policy": ["consent_required"],
            "before": {"consent_required": None}, "after": {"consent_required": True},
        }  # fmt: skip
        assert changed == {
            "fields": ["policy"], "policy": ["consent_required", "retention_days"],
            "before": {"consent_required": True, "retention_days": None},
            "after": {"consent_required": None, "retention_days": 30},
        }  # fmt: skip
        assert again == {"fields": ["metadata"]}

    def test_keys(self, store: Store, engine: Engine) -> None:
        keys = AccessKeyStore(Database(engine, audit_key=KEY), KEY)
        with acting_as("user:root"):
            key, _ = keys.create(NewKey("entrance", [Scope.IDENTIFY], ["staff"]))
        keys.revoke("entrance")
        created, revoked = entries_of(store)[-2:]
        assert created["actor"] == "user:root"
        assert created["details"] == {
            "key_id": key.key_id, "name": "entrance", "scopes": ["identify"],
            "collections": ["staff"],
        }  # fmt: skip
        assert [revoked["action"], revoked["actor"]] == ["key.revoked", "service"]

    def test_the_limits_of_a_new_key(self, store: Store, engine: Engine) -> None:
        keys = AccessKeyStore(Database(engine, audit_key=KEY), KEY)
        limits = KeyLimits(photos_per_day=50)
        keys.create(NewKey("entrance", [Scope.IDENTIFY], limits=limits))
        keys.rotate("entrance", timedelta(hours=1))
        keys.limit("entrance", KeyLimits(photos_per_second=5.0))
        created, rotated, *limited = entries_of(store)[-4:]
        assert [created["action"], created["details"]["photos_per_day"]] == ["key.created", 50]
        assert [rotated["action"], rotated["details"]["photos_per_day"]] == ["key.rotated", 50]
        for entry in limited:  # the old key, which has not expired yet, and the new one
            assert [entry["action"], entry["details"]["photos_per_second"]] == ["key.limited", 5.0]
            assert "photos_per_day" not in entry["details"]

    def test_what_failed_leaves_none(self, store: Store) -> None:
        store.persons.create("staff", "ada", {})
        before = len(entries_of(store))
        with pytest.raises(PersonExists):
            store.persons.create("staff", "ada", {})
        store.persons.create("staff", "bob", {})
        assert len(entries_of(store)) == before + 1

    def test_who_and_whom(self, store: Store) -> None:
        with acting_as("key:abc"):
            enroll(store, "ada")
        entry = entries_of(store)[-1]
        assert entry["actor"] == "key:abc"
        assert entry["person"] == store.persons.get("staff", "ada").key
        found = store.audit.latest(9, AuditFilter(actor="key:abc", action="person.enrolled"))
        assert [one.members for one in found] == [entry]

    def test_times_with_an_offset(self, store: Store) -> None:
        enroll(store, "ada")
        east = timezone(timedelta(hours=9))
        since = datetime.now(east) - timedelta(minutes=5)
        assert len(store.audit.latest(9, AuditFilter(since=since))) == 2

    def test_a_history_is_of_one_collection_and_since_the_last_restore(self, store: Store) -> None:
        enroll(store, "ada")
        number = store.persons.get("staff", "ada").key
        assert len(store.audit.history("staff", number, 9)[0]) == 1
        assert store.audit.history("another", number, 9) == ([], False)
        enroll(store, "ada", 2.0)
        found, older = store.audit.history("staff", number, 1)
        assert [len(found), older] == [1, True]
        store.audit.record(DATABASE_RESTORED)
        assert store.audit.history("staff", number, 9) == ([], False)
        # `likeness audit show --person` looks here.
        assert store.audit.latest(9, AuditFilter(collection="staff", person=number)) == []
        assert len(store.audit.latest(9, AuditFilter(collection="staff"))) > 1

    def test_nothing_in_it_says_who_an_erased_person_was(self, store: Store) -> None:
        store.persons.create("staff", "ada.lovelace", {"name": "Ada Lovelace"})
        enroll(store, "ada.lovelace")
        number = store.persons.get("staff", "ada.lovelace").key
        store.persons.delete("staff", "ada.lovelace")
        log = "\n".join(exported(store.audit.everything()))
        assert "lovelace" not in log.lower()
        enroll(store, "grace")  # the number is not used again
        assert store.persons.get("staff", "grace").key != number
        assert verify_audit(store.audit.everything(), KEY).problem is None


def last(store: Store) -> int:
    return store.audit.latest(1)[0].sequence


def forge(connection: Any, sequence: int) -> None:
    """Change an entry and everything after it, as somebody without the key would."""
    from app.store.sql.audit_chain import digest_after

    rows = connection.execute(audit_entries.select().order_by(audit_entries.c.sequence)).all()
    digest = bytes(32)
    for row in rows:
        content = row.content
        if row.sequence == sequence:
            content = content.replace("person.enrolled", "person.created")
        digest = digest_after(digest, row.sequence, content)
        mine = audit_entries.c.sequence == row.sequence
        connection.execute(update(audit_entries).where(mine).values(content=content, digest=digest))
    connection.execute(update(audit_head).values(digest=digest))


def swap(connection: Any, _: int) -> None:
    for old, new in ((2, 1000), (3, 2), (1000, 3)):
        connection.execute(
            update(audit_entries).where(audit_entries.c.sequence == old).values(sequence=new)
        )


ENTRY = audit_entries.c.sequence
TAMPERING: dict[str, tuple[Callable[[Any, int], None], str]] = {
    "an entry changed": (
        lambda c, _: c.execute(
            update(audit_entries).where(ENTRY == 2).values(content='{"at":"","actor":"x"}')
        ),
        "entry 2 was changed",
    ),
    "an entry removed": (
        lambda c, _: c.execute(delete(audit_entries).where(ENTRY == 3)), "entry 3 is missing",
    ),
    "the first removed": (
        lambda c, _: c.execute(delete(audit_entries).where(ENTRY == 1)), "entry 1 is missing",
    ),
    "the last removed": (
        lambda c, n: c.execute(delete(audit_entries).where(n == ENTRY)), "entries were written",
    ),
    "the last removed and the end moved": (
        lambda c, n: (
            c.execute(delete(audit_entries).where(n == ENTRY)),
            c.execute(
                text(
                    "UPDATE audit_head SET sequence = sequence - 1, digest = (SELECT digest FROM "
                    "audit_entries ORDER BY sequence DESC LIMIT 1)"
                )
            ),
        ),
        "signature",
    ),
    "an entry before the first": (
        lambda c, _: c.execute(
            audit_entries.insert().values(
                sequence=-5, at=datetime.now(UTC), actor="x", action="y", content="", digest=b""
            )
        ),
        "entry 1 is missing",
    ),
    "two exchanged": (swap, "entry 2 was changed"),
    "everything written anew": (forge, "signature"),
    "the signature removed": (
        lambda c, _: c.execute(update(audit_head).values(signature=None)), "not signed",
    ),
}  # fmt: skip


class TestVerification:
    @pytest.mark.parametrize("name", TAMPERING)
    def test_tampering_is_found(self, store: Store, engine: Engine, name: str) -> None:
        for person in ("ada", "bob", "eve", "dan"):
            enroll(store, person)
        change, found = TAMPERING[name]
        number = last(store)
        assert verify_audit(store.audit.everything(), KEY).problem is None
        with engine.begin() as connection:
            change(connection, 2 if change is forge else number)
        problem = verify_audit(store.audit.everything(), KEY).problem
        assert problem is not None
        assert found in problem

    @pytest.mark.parametrize(
        "change", [{"actor": "somebody"}, {"at": datetime(1999, 1, 1, tzinfo=UTC)}, {"person": 9}]
    )
    def test_a_column_that_was_changed(
        self, store: Store, engine: Engine, change: dict[str, Any]
    ) -> None:
        enroll(store, "ada")
        assert store.audit.columns_that_differ() is None
        with engine.begin() as connection:
            connection.execute(update(audit_entries).where(ENTRY == 2).values(**change))
        assert store.audit.columns_that_differ() == 2

    def test_a_content_that_cannot_be_read(self, store: Store, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(update(audit_entries).where(ENTRY == 1).values(content="[1]"))
        with pytest.raises(DamagedData, match="Entry 1 of the audit log was changed"):
            entries_of(store)

    def test_another_secret(self, store: Store) -> None:
        found = verify_audit(store.audit.everything(), bytes(32))
        assert found.problem is not None
        assert "another secret" in found.problem

    def test_an_exported_log(self, store: Store) -> None:
        for person in ("ada", "bob"):
            enroll(store, person)
        lines = list(exported(store.audit.everything()))
        assert verify_audit(read_export(lines), KEY).entries == 3
        assert verify_audit(read_export(lines[:-1]), KEY).problem == "the end of the log is missing"
        assert verify_audit(read_export(lines[:1] + lines[2:]), KEY).problem is not None
        assert verify_audit(read_export([*lines, lines[0]]), KEY).problem == (
            "something follows the end of the log"
        )
        with pytest.raises(ValueError, match="line 1"):
            list(read_export([json.dumps(json.loads(lines[0]) | {"actor": "somebody"})]))
        changed = json.loads(lines[1]) | {"content": "{}"}
        lines[1] = json.dumps(changed)
        assert verify_audit(read_export(lines), KEY).problem is not None

    @pytest.mark.parametrize(
        "line", ["", "[]", "{}", '{"sequence": 1}', '{"end": 1, "digest": 2}', "[" * 100_000]
    )
    def test_a_file_that_is_none(self, line: str) -> None:
        with pytest.raises(ValueError, match="line 1"):
            list(read_export([line]))

    def test_a_log_that_was_emptied(self, store: Store, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(delete(audit_entries))
            values = {"sequence": 0, "digest": bytes(32), "signature": None, "signer": None}
            connection.execute(update(audit_head).values(values))
        problem = verify_audit(store.audit.everything(), KEY).problem
        assert problem is not None
        assert problem.startswith("it is empty")
        store.audit.begin_log()
        store.audit.begin_log()
        assert actions(store) == ["log.begun"]

    def test_a_log_without_its_end(self, store: Store, engine: Engine) -> None:
        with engine.begin() as connection:
            connection.execute(delete(audit_head))
        problem = verify_audit(store.audit.everything(), KEY).problem
        assert problem == "the log ends at entry 1, but 0 entries were written"


def test_a_search_names_who_was_answered_and_not_who_has_the_face_now(store: Store) -> None:
    record = store.collections.create("default", SPACE, DIMENSION, {})
    new = [template(np.eye(16, dtype=np.float32)[0], "a")]
    (stored,) = store_person(store, "default", "bob", None, new)
    bob = store.persons.get("default", "bob")
    names, _ = store.templates.matchable(record, [stored.face.template_key])
    for face in (
        names[stored.face.template_key],
        store.templates.get("default", stored.face.face_id),
        store.templates.by_key([stored.face.template_key])[stored.face.template_key],
        stored.face,
    ):
        assert (face.person_key, face.person_id) == (bob.key, "bob")
    store.persons.create("default", "ada", {})
    store.corrections.move_face("default", stored.face.face_id, "ada")
    searches = [(face.person_key, {"status": "identified"}), (None, {"status": "unknown"})]
    store.audit.record_searches(record, "face.identified", searches)
    assert [one.members["person"] for one in store.audit.latest(2)] == [bob.key, None]


def test_a_log_without_its_end_is_named_by_every_write(store: Store, engine: Engine) -> None:
    store.audit.record("log.begun")
    with engine.begin() as connection:
        connection.execute(delete(audit_head))
    with pytest.raises(DamagedData, match="likeness audit verify"):
        store.collections.create("default", SPACE, DIMENSION, {})


def test_a_page_of_long_entries_ends_early(store: Store) -> None:
    names = [f"{number:064d}" for number in range(1000)]
    for _ in range(20):  # 1.3 MB
        store.audit.record("key.created", collections=names)
    found, more = list[int](), True
    while more:
        entries, more = store.audit.page(found[-1] if found else 0, 1000)
        assert sum(len(one.content) for one in entries) < 600_000
        found += [one.sequence for one in entries]
    assert found == [one.sequence for one in store.audit.latest(1000)]


def test_many_writers_at_once(store: Store) -> None:
    def work(worker: int) -> None:
        for turn in range(12):
            with acting_as(f"key:{worker}"):
                enroll(store, f"p{worker}.{turn}", worker + turn / 100)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    found = verify_audit(store.audit.everything(), KEY)
    assert found.problem is None
    assert found.entries == 1 + 4 * 12
