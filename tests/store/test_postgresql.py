"""What is particular to PostgreSQL: its URLs, its settings, and its ways to fail."""

import itertools
import random
import sys
import threading
import traceback
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import IntegrityError, OperationalError

from app.encryption.keys import new_key_line, parse_keys
from app.encryption.ring import KeyRing
from app.errors import (
    DatabaseError,
    InvalidRequest,
    StoreFull,
    StoreUnavailable,
)
from app.inference.scheduler import DELETE_THREADS, WRITE_THREADS
from app.store.backends import create_engine, postgresql, shown_url
from app.store.records import IdempotencyRequest, PersonEnrollment, PersonTemplate
from app.store.schema import migrate
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_engine, open_store, template
from tests.waiting import PATIENCE_S, until
from tests.writing import store_person


@pytest.fixture
def own_store(postgres_url: str) -> Store:
    store = open_store(postgres_url)
    store.collections.create("default", SPACE, DIMENSION, {})
    return store


class TestUrl:
    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
    def test_every_spelling_means_psycopg_3(self, scheme: str) -> None:
        engine = create_engine(f"{scheme}://u:secret@db.example/likeness?password=secret")
        assert engine.dialect.driver == "psycopg"
        assert shown_url(engine) == "postgresql+psycopg://u:***@db.example/likeness"

    def test_another_driver_is_refused(self) -> None:
        with pytest.raises(DatabaseError, match="psycopg 3"):
            create_engine("postgresql+psycopg2://u:secret@db.example/likeness")

    def test_a_missing_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "psycopg", None)
        with pytest.raises(DatabaseError, match=r"likeness\[postgres\]"):
            create_engine("postgresql://u:secret@db.example/likeness")

    def test_a_server_that_does_not_answer(self) -> None:
        engine = open_engine("postgresql://u:secret@127.0.0.1:1/likeness")
        with pytest.raises(DatabaseError, match="Check that the server runs") as caught:
            migrate(engine)
        assert "secret" not in caught.value.detail

    def test_a_database_that_does_not_exist(self, postgres: Any, postgres_url: str) -> None:
        name = postgres_url.partition("@/")[2].partition("?")[0]
        with pytest.raises(DatabaseError, match="the database exists"):
            migrate(open_engine(postgres_url.replace(name, "nowhere")))


class TestSettings:
    def test_a_session_waits_for_nothing_without_end(self, own_store: Store) -> None:
        with own_store.database.writing() as connection:
            settings = {
                name: connection.execute(text(f"SHOW {name}")).scalar_one()
                for name in ("lock_timeout", "statement_timeout", "synchronous_commit",
                             "idle_in_transaction_session_timeout", "transaction_isolation")
            }  # fmt: skip
        assert settings == {
            "lock_timeout": "15s",
            "statement_timeout": "2min",
            "idle_in_transaction_session_timeout": "1min",
            "synchronous_commit": "on",
            "transaction_isolation": "read committed",
        }

    @pytest.mark.parametrize(
        ("given", "kept"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")]
    )
    def test_a_commit_is_on_disk_whatever_the_server_says(
        self, postgres: Any, postgres_url: str, given: str, kept: str
    ) -> None:
        name = postgres_url.partition("@/")[2].partition("?")[0]
        postgres.run(f"ALTER DATABASE {name} SET synchronous_commit = {given}")
        with open_engine(postgres_url).connect() as connection:
            assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == kept

    def test_readers_see_one_state_and_cannot_write(self, own_store: Store) -> None:
        with own_store.database.reading() as connection:
            count = text("SELECT count(*) FROM persons")
            assert connection.execute(count).scalar_one() == 0
            own_store.persons.create("default", "ada", {})
            assert connection.execute(count).scalar_one() == 0
        with (
            pytest.raises(StoreUnavailable),
            own_store.database.reading() as connection,
        ):
            connection.execute(text("DELETE FROM persons"))


class TestFailures:
    def test_a_full_disk_is_507(self, own_store: Store) -> None:
        fail_inserts(own_store, "53100")
        with pytest.raises(StoreFull, match="nothing was changed"):
            own_store.persons.create("default", "ada", {})
        assert own_store.persons.page("default", None, 9).items == []

    @pytest.mark.parametrize(
        ("state", "words"),
        [
            ("25006", "the primary"),
            ("42501", "lacks a right"),
            ("57P01", "cannot be reached"),
            ("57014", "took too long"),
            ("XX001", "its own log"),
        ],
    )
    def test_other_failures_are_503_and_say_what_to_do(
        self, own_store: Store, state: str, words: str
    ) -> None:
        fail_inserts(own_store, state)
        with pytest.raises(StoreUnavailable, match=rf"Nothing was changed\. .*{words}"):
            own_store.persons.create("default", "ada", {})

    def test_a_server_without_a_connection_left_says_so(
        self, own_store: Store, postgres_url: str
    ) -> None:
        """Refused while connecting, where the client library gives no code."""
        engine = own_store.database.engine
        role = "crowded"
        with engine.begin() as connection:
            connection.execute(text(f"DROP ROLE IF EXISTS {role}"))
            connection.execute(text(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 0"))
        url = make_url(postgres_url).set(username=role)
        crowded = open_engine(url.render_as_string(hide_password=False))
        with pytest.raises(StoreUnavailable, match="no connection left"):
            Store(crowded).collections.get("default")

    def test_a_collection_locked_for_too_long_is_503(
        self, postgres_url: str, own_store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(postgresql, "SESSION", ("SET lock_timeout = '50ms'",))
        other = Store(open_engine(postgres_url))
        own_store.collections.create("other", SPACE, DIMENSION, {})
        with own_store.database.writing() as connection:
            connection.execute(
                text("SELECT 1 FROM collections WHERE name = 'default' FOR UPDATE")
            ).one()
            with pytest.raises(StoreUnavailable, match="held the collection"):
                other.persons.create("default", "ada", {})
            assert other.collections.get("default").name == "default"  # reads go on
            other.persons.create("other", "ada", {})  # and so do the other collections
        assert other.persons.create("default", "ada", {}).person_id == "ada"

    def test_a_restarted_server_costs_no_request(self, postgres: Any, own_store: Store) -> None:
        own_store.persons.create("default", "ada", {})
        postgres.stop()
        try:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                own_store.persons.create("default", "bob", {})
            with pytest.raises(StoreUnavailable):
                own_store.database.ping()
        finally:
            postgres.start()
        own_store.persons.create("default", "bob", {})
        assert [p.person_id for p in own_store.persons.page("default", None, 9).items] == [
            "ada",
            "bob",
        ]

    def test_a_connection_lost_while_it_commits_leaves_the_outcome_open(
        self, own_store: Store
    ) -> None:
        fail_commits(own_store)
        with pytest.raises(StoreUnavailable, match="may have been kept or not"):
            own_store.persons.create("default", "ada", {})

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_connection_lost_between_enrollments_fails_all_of_them(
        self, own_store: Store, number: int
    ) -> None:
        """Of several in one transaction, whichever of them notices it."""
        cut = text("CREATE TRIGGER cut BEFORE INSERT ON persons FOR EACH ROW "
                   f"WHEN (NEW.person_id = 'p{number}') EXECUTE FUNCTION cut()")  # fmt: skip
        with own_store.database.writing() as connection:
            connection.execute(text(_CUTS))
            connection.execute(cut)
        vectors = np.eye(DIMENSION, dtype=np.float32)[:2]
        people = [
            PersonEnrollment(f"p{i}", None, [template(vector, f"{i}")])
            for i, vector in enumerate(vectors)
        ]
        with pytest.raises(StoreUnavailable, match=r"Nothing was changed\. .*cannot be reached"):
            own_store.templates.enroll_together("default", people, SPACE)
        assert own_store.persons.page("default", None, 9).items == []
        own_store.persons.create("default", "ada", {})

    def test_a_statement_after_a_lost_connection_is_503(self, own_store: Store) -> None:
        def write() -> None:
            with own_store.database.writing() as connection:
                with pytest.raises(OperationalError):
                    connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
                connection.execute(text("SELECT 1"))

        with pytest.raises(StoreUnavailable, match="was lost"):
            write()

    def test_what_text_cannot_hold_is_the_callers_fault(self, own_store: Store) -> None:
        with pytest.raises(InvalidRequest, match="NUL"):
            own_store.persons.page("default", "a\0b", 10)

    def test_an_error_shows_no_row(self, own_store: Store) -> None:
        broken = template(np.eye(DIMENSION, dtype=np.float32)[0], "a")
        object.__setattr__(broken, "content_digest", None)
        with pytest.raises(IntegrityError) as caught:
            store_person(own_store, "default", "ada", {"secret": 1}, [broken])
        reported = "".join(traceback.format_exception(caught.value))
        assert "content_digest" in reported
        assert "Failing row" not in reported
        assert "803f" not in reported  # the embedding's bytes


def test_pruning_of_answers_waits_for_no_enrollment(postgres_url: str) -> None:
    """Which removes expired answers of its collection, in any order."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    store = open_store(postgres_url, clock=lambda: now)
    store.collections.create("default", SPACE, DIMENSION, {})
    for key, vector in zip("ab", np.eye(DIMENSION, dtype=np.float32)[:2], strict=True):
        kept = IdempotencyRequest(key, "d", lambda _: {})
        store_person(store, "default", key, None, [template(vector, key)], idempotency=kept)
    left = text("SELECT key FROM idempotency")
    later = open_store(postgres_url, clock=lambda: now + timedelta(days=2))
    with store.database.writing() as connection:
        connection.execute(text("SELECT 1 FROM idempotency WHERE key = 'a' FOR UPDATE")).one()
        later.idempotency.prune()
        assert list(connection.scalars(left)) == ["a"]
    later.idempotency.prune()
    with store.database.reading() as connection:
        assert not list(connection.scalars(left))


def test_reads_are_answered_while_every_writing_thread_waits(own_store: Store) -> None:
    own_store.collections.create("busy", SPACE, DIMENSION, {})
    own_store.persons.create("default", "ada", {})
    writers = WRITE_THREADS + DELETE_THREADS
    other = open_engine(own_store.database.engine.url.render_as_string(hide_password=False))
    with ThreadPoolExecutor(writers) as threads, other.connect() as holder:
        holder.execute(text("SELECT 1 FROM collections WHERE name = 'busy' FOR UPDATE"))
        writes = [
            threads.submit(own_store.persons.create, "busy", f"p{i}", {}) for i in range(writers)
        ]
        looking = Store(other)
        until(lambda: waiting_for_locks(looking) == writers)
        assert own_store.persons.get("default", "ada").person_id == "ada"
        assert not any(write.done() for write in writes)
        holder.rollback()
        for write in writes:
            write.result(PATIENCE_S)


def test_two_processes_start_with_a_new_encryption_key(own_store: Store, postgres_url: str) -> None:
    ring = KeyRing(parse_keys(new_key_line("first").encode(), "test"))
    later: list[Future[None]] = []

    def late() -> datetime:
        """The time, once another process has come as far as it can."""
        if not later:
            later.append(threads.submit(open_store(postgres_url, ring=ring).encryption.check_keys))
        until(lambda: later[0].done() or waiting_for_locks(own_store))
        return datetime.now(UTC)

    with ThreadPoolExecutor(1) as threads:
        open_store(postgres_url, ring=ring, clock=late).encryption.check_keys()
        later[0].result(PATIENCE_S)
    with own_store.database.reading() as connection:
        keys = connection.execute(text("SELECT key_id FROM encryption_keys")).scalars().all()
    assert keys == ["first"]


@pytest.mark.parametrize("begins", [1, 2])  # before the other one has inserted them, and after
def test_two_imports_of_the_same_face_ids_at_the_same_time(
    own_store: Store, postgres_url: str, begins: int
) -> None:
    face_ids = [str(uuid.uuid4()) for _ in range(3)]
    first, second, _ = import_during_another(own_store, postgres_url, face_ids, face_ids, begins)
    assert face_ids in (first, second)
    assert None not in (*first, *second)
    assert not {*first} & {*second}


@pytest.mark.slow
def test_many_imports_of_the_same_face_ids(own_store: Store, postgres_url: str) -> None:
    """In whatever order they have them: each is stored, or refused with an error that is tried
    again, such as for a deadlock."""
    face_ids = [str(uuid.uuid4()) for _ in range(40)]
    names = [f"c{number}" for number in range(6)]
    for name in names:
        own_store.collections.create(name, SPACE, DIMENSION, {})
    stores = {name: open_store(postgres_url) for name in names}
    begin = threading.Barrier(len(names))

    def importing(name: str) -> int:
        draw = random.Random(name)
        begin.wait(PATIENCE_S)
        stored = 0
        for number in range(12):
            vectors = np.eye(4, DIMENSION, dtype=np.float32)
            rows = [
                PersonTemplate(f"p{number}-{face_id}", None, template(vector, face_id), face_id)
                for vector, face_id in zip(vectors, draw.sample(face_ids, 4), strict=True)
            ]
            while True:
                try:
                    stored += len(stores[name].imports.enroll(name, rows, SPACE))
                    break
                except StoreUnavailable:
                    continue
        return stored

    with ThreadPoolExecutor(len(names)) as threads:
        assert list(threads.map(importing, names)) == [48] * len(names)
    everything = [own_store.collections.get(name) for name in names]
    assert [own_store.collections.count(one).persons for one in everything] == [48] * len(names)


def test_imports_of_other_face_ids_do_not_wait(own_store: Store, postgres_url: str) -> None:
    face_ids = [str(uuid.uuid4()) for _ in range(6)]
    made = import_during_another(own_store, postgres_url, face_ids[:3], face_ids[3:], 2)
    assert made == (face_ids[:3], face_ids[3:], [0])


def import_during_another(
    store: Store, url: str, one: list[str], other: list[str], begins: int
) -> tuple[list[Any], list[Any], list[int]]:
    """Import faces of those ids into two collections. The second import begins when the first, in
    its transaction, asks for the time after `begins` times, and goes as far as it can. Returns
    both answers, and how many sessions waited for a lock then."""
    store.collections.create("other", SPACE, DIMENSION, {})
    later: list[Future[list[Any]]] = []
    waits: list[int] = []
    calls = itertools.count()

    def importing(at: Store, name: str, face_ids: list[str]) -> list[Any]:
        vectors = np.eye(DIMENSION, dtype=np.float32)
        rows = [
            PersonTemplate("ada", None, template(vector, face_id), face_id)
            for vector, face_id in zip(vectors, face_ids, strict=False)
        ]
        return list(at.imports.enroll(name, rows, SPACE))

    def late() -> datetime:
        if next(calls) == begins:
            later.append(threads.submit(importing, open_store(url), "other", other))
            until(lambda: later[0].done() or waiting_for_locks(store))
            waits.append(waiting_for_locks(store))
        return datetime.now(UTC)

    with ThreadPoolExecutor(1) as threads:
        first = importing(open_store(url, clock=late), "default", one)
        return first, later[0].result(PATIENCE_S), waits


def test_reading_the_whole_audit_log_may_pause(own_store: Store) -> None:
    executed: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        executed.append(statement)

    event.listen(own_store.database.engine, "before_cursor_execute", note)
    assert list(own_store.audit.everything())
    event.remove(own_store.database.engine, "before_cursor_execute", note)
    assert {*postgresql.PATIENCE} <= {*executed}


def waiting_for_locks(store: Store) -> int:
    """How many sessions of the database wait for a lock."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND "
        "wait_event_type = 'Lock'"
    )
    with store.database.reading() as connection:
        return int(connection.execute(text(query)).scalar_one())


def fail_inserts(store: Store, state: str) -> None:
    """Make the server fail with an SQLSTATE where a person is inserted."""
    with store.database.writing() as connection:
        connection.execute(text(_raising(state)))
        connection.execute(
            text("CREATE TRIGGER fails BEFORE INSERT ON persons EXECUTE FUNCTION fails()")
        )


def fail_commits(store: Store) -> None:
    """Make the server cut the connection while it commits a person."""
    with store.database.writing() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION dies() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON persons "
                "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dies()"
            )
        )


_CUTS = (
    "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$"
)


def _raising(state: str) -> str:
    return (
        "CREATE FUNCTION fails() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'injected' USING ERRCODE = '{state}'; END $$"
    )


def test_no_space_left_in_the_systems_own_words() -> None:
    assert postgresql.is_full(psycopg.OperationalError("write: No space left on device"))
    assert not postgresql.is_full(psycopg.OperationalError("server closed the connection"))
