"""Several writers at once, in threads with connections of their own: over every database."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import text

from app.errors import (
    CollectionExists,
    CollectionNotFound,
    EnrolledBefore,
    InvalidRequest,
    PersonExists,
    StoreUnavailable,
)
from app.gallery.candidates import MAX_REPEATS, Candidate, SearchQuery
from app.gallery.gallery import Gallery
from app.gallery.replica import position_of
from app.index.port import Position
from app.store.records import (
    Changes,
    CollectionRecord,
    FaceName,
    IdempotencyRequest,
    PersonEnrollment,
)
from app.store.sql.templates import TemplateStore
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_store, template
from tests.index.conftest import unit
from tests.waiting import PATIENCE_S
from tests.writing import enroll_person, store_person

Draw = Callable[[int], NDArray[np.float32]]
WRITERS = 6


def at_once(works: list[Callable[[], Any]]) -> list[Any]:
    """What each returned, or the type of what it raised."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        barrier.wait(PATIENCE_S)
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - the test looks at all of them
            return type(error)

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(run, works))


@pytest.fixture
def stores(engine_url: str, store: Store) -> list[Store]:
    """As many processes see the database: each with its own connections."""
    return [store, open_store(engine_url)] * (WRITERS // 2)


def test_a_collection_is_created_once(stores: list[Store]) -> None:
    works = [lambda s=s: s.collections.create("new", SPACE, DIMENSION, {}).name for s in stores]
    assert Counter(at_once(works)) == {"new": 1, CollectionExists: WRITERS - 1}


def test_a_person_is_created_once(stores: list[Store]) -> None:
    works = [lambda s=s: s.persons.create("default", "ada", {}).person_id for s in stores]
    assert Counter(at_once(works)) == {"ada": 1, PersonExists: WRITERS - 1}


def test_enrolments_of_one_person_merge(stores: list[Store], directions: Draw) -> None:
    vectors = directions(WRITERS)

    def enroll(store: Store, i: int) -> bool:
        new = [template(vectors[i], f"{i}"), template(vectors[0], "same")]
        return store_person(store, "default", "ada", None, new)[1].duplicate

    works = [lambda s=s, i=i: enroll(s, i) for i, s in enumerate(stores)]
    assert Counter(at_once(works)) == {False: 1, True: WRITERS - 1}
    assert stores[0].persons.get("default", "ada").templates == WRITERS + 1


def test_a_write_does_not_wait_for_an_update_of_the_index(
    gallery: Gallery, directions: Draw
) -> None:
    """A search finds what it stored nevertheless."""
    first, second = directions(2)
    enroll_person(gallery, "default", "ada", None, [template(first, "1")])
    (replica,) = gallery._replicas.values()
    with ThreadPoolExecutor(1) as threads, replica._lock:
        new = [template(second, "2")]
        threads.submit(enroll_person, gallery, "default", "bob", None, new).result(PATIENCE_S)
        assert replica.index.position != Position(2, gallery.require("default").stamp)
    (found,) = gallery.identify("default", second[np.newaxis], 1).rows
    assert [one.face.person_id for one in found] == ["bob"]


def test_a_write_updates_an_index_that_is_open(
    gallery: Gallery, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it has stored: the database is read only if something else was written before."""

    def enroll(person: str, number: int) -> bool:
        one = PersonEnrollment(person, None, [template(vectors[number], f"{number}")])
        return gallery.enroll_together("default", [one])[1]

    vectors = directions(4)
    assert not enroll("ada", 0)  # nothing was searched yet, so no index is open
    gallery.identify("default", vectors[:1], 1)
    (replica,) = gallery._replicas.values()
    read: list[int] = []
    since = replica._changes.since

    def reading(record: CollectionRecord, revision: int, stamp: str | None = None) -> Changes:
        read.append(revision)
        return since(record, revision, stamp)

    monkeypatch.setattr(replica._changes, "since", reading)
    assert enroll("bob", 1)
    assert (replica.index.position, read) == (position_of(gallery.require("default")), [])
    store_person(gallery.store, "default", "cyd", None, [template(vectors[2], "2")])
    assert enroll("dan", 3)
    assert (replica.index.position, read) == (position_of(gallery.require("default")), [2])
    found = gallery.identify("default", vectors, 1).rows
    assert [row[0].face.person_id for row in found] == ["ada", "bob", "cyd", "dan"]
    assert gallery.check_index("default").clean


def test_keys_rise_with_revisions_and_a_follower_misses_nothing(
    stores: list[Store], directions: Draw
) -> None:
    vectors = directions(8)
    record = stores[0].collections.get("default")
    done = threading.Event()
    seen: list[list[int]] = []

    def follow() -> None:
        revision, last = 0, False
        while not last:
            last = done.is_set()
            news = stores[0].changes.since(record, revision)
            seen.append(news.added.keys.tolist())
            revision = news.revision

    def write(store: Store, writer: int) -> None:
        for i in range(8):
            new = [template(vectors[i], "a"), template(vectors[i], "b")]
            store_person(store, "default", f"{writer}-{i}", None, new)

    follower = threading.Thread(target=follow)
    follower.start()
    outcomes = at_once([lambda s=s, i=i: write(s, i) for i, s in enumerate(stores[:4])])
    done.set()
    follower.join(PATIENCE_S)
    assert outcomes == [None] * 4
    everything = stores[0].changes.since(record, 0).added.keys.tolist()
    assert list(chain.from_iterable(seen)) == everything  # each once, and in the order of the keys
    with stores[0].database.reading() as connection:
        rows = connection.execute(text("SELECT revision, template FROM changes")).all()
    by_revision = sorted((row.revision, row.template) for row in rows)
    assert [template for _, template in by_revision] == everything
    assert [revision for revision, _ in by_revision] == sorted([*range(1, 33), *range(1, 33)])


def test_a_collection_deleted_under_its_writers(stores: list[Store], directions: Draw) -> None:
    vector = directions(1)[0]

    def enroll(store: Store, writer: int) -> str:
        for i in range(20):
            store_person(store, "default", f"{writer}-{i}", None, [template(vector, "a")])
        return "all"

    works: list[Callable[[], Any]] = [
        lambda s=s, i=i: enroll(s, i) for i, s in enumerate(stores[:-1])
    ]
    works.append(lambda: "deleted" if stores[-1].collections.delete("default") else "")
    outcomes = Counter(at_once(works))
    assert outcomes["deleted"] == 1
    assert set(outcomes) <= {"deleted", "all", CollectionNotFound}
    with stores[0].database.reading() as connection:
        for table in ("persons", "templates", "changes"):
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == 0


def test_one_key_is_one_enrolment(stores: list[Store], directions: Draw) -> None:
    vectors = directions(WRITERS)

    def enroll(store: Store, i: int) -> str:
        idempotency = IdempotencyRequest(
            "key", "digest", lambda stored: {"face": stored[0].face.face_id}
        )
        # Other content each time: what counts is the digest of the request.
        new = [template(vectors[i], str(i))]
        return store_person(store, "default", f"{i}", None, new, idempotency=idempotency)[
            0
        ].face.face_id

    outcomes = at_once([lambda s=s, i=i: enroll(s, i) for i, s in enumerate(stores)])
    faces = [one for one in outcomes if isinstance(one, str)]
    assert len(faces) == 1
    assert Counter(outcomes)[EnrolledBefore] == WRITERS - 1
    again = IdempotencyRequest("key", "digest", lambda stored: {})
    assert [store.idempotency.answered("default", again) for store in stores] == [
        {"face": faces[0]}
    ] * WRITERS
    assert len(stores[0].persons.page("default", None, 9).items) == 1


def test_what_is_stored_is_acknowledged_if_the_index_cannot_follow(
    gallery: Gallery, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps its own outcome; the next search updates the index."""

    def full(*_: object) -> bool:
        raise MemoryError

    vectors = directions(2)
    people = [
        PersonEnrollment("ada", None, [template(vectors[0], "a")]),
        PersonEnrollment("bob", {"n": 2**60}, [template(vectors[1], "b")]),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(gallery._indexes, "add", full)
        (ada, bob), followed = gallery.enroll_together("default", people)
    assert (isinstance(ada, list), type(bob), followed) == (True, InvalidRequest, False)
    (row,) = gallery.identify("default", vectors[:1], 1).rows
    assert row[0].face.person_id == "ada"


CHANGES: dict[str, Callable[[Store, str], Any]] = {
    "moved": lambda store, face_id: store.corrections.move_face("default", face_id, "new"),
    "merged": lambda store, _: store.corrections.merge_persons("default", "old", "new"),
    "deleted": lambda store, face_id: store.templates.delete("default", face_id),
}


@pytest.mark.parametrize("at_once_first", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_search_finds_whose_face_is_changed_before_its_name_is_read(
    gallery: Gallery,
    directions: Draw,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    at_once_first: bool,
) -> None:
    """As another process does it, between the search of the index and the reading of names.
    The person has a second, less similar face; without it, somebody else would be the nearest."""
    probe, second, somebody = directions(3)
    vectors = unit(np.array([probe + 0.1 * somebody, probe + 0.4 * somebody, probe + second]))
    faces = enroll_person(
        gallery,
        "default",
        "old",
        None,
        [template(one, str(i)) for i, one in enumerate(vectors[:2])],
    )
    enroll_person(gallery, "default", "other", None, [template(vectors[2], "other")])
    enroll_person(gallery, "default", "new", None, [template(-probe, "far")])
    assert [one.face.person_id for one in found(gallery, probe)] == ["old", "other"]
    changed = list[int]()
    read = TemplateStore.matchable

    def change_first(
        store: TemplateStore, record: CollectionRecord, keys: Sequence[int]
    ) -> tuple[Mapping[int, FaceName], Set[int]]:
        if not changed:
            changed.append(1)
            CHANGES[change](gallery.store, faces[0].face.face_id)
        return read(store, record, keys)

    monkeypatch.setattr(TemplateStore, "matchable", change_first)
    if at_once_first:
        record = gallery.require("default")
        query = SearchQuery(probe[np.newaxis], 2)
        at_once_found = gallery.identify_at_once(record, query)
        assert at_once_found is None, "the index is behind now, and an update could take long"
    nearest = found(gallery, probe)[0]
    assert changed
    expected = {"moved": ("new", vectors[0]), "merged": ("new", vectors[0])}
    person, vector = expected.get(change, ("old", vectors[1]))
    assert nearest.face.person_id == person
    assert nearest.similarity == pytest.approx(float(vector @ probe), abs=1e-5)


def moving(monkeypatch: pytest.MonkeyPatch, times: int, move: Callable[[], None]) -> list[int]:
    """Moves before each of so many readings of names; the list has an item for each reading."""
    read, readings = TemplateStore.matchable, list[int]()

    def move_first(
        store: TemplateStore, record: CollectionRecord, keys: Sequence[int]
    ) -> tuple[Mapping[int, FaceName], Set[int]]:
        readings.append(1)
        if len(readings) <= times:
            move()
        return read(store, record, keys)

    monkeypatch.setattr(TemplateStore, "matchable", move_first)
    return readings


@pytest.mark.parametrize("times", [MAX_REPEATS - 1, MAX_REPEATS])
def test_a_search_is_repeated_so_often_and_never_answers_without_the_person(
    gallery: Gallery, directions: Draw, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    (probe,) = directions(1)
    (stored,) = enroll_person(gallery, "default", "a", None, [template(probe, "0")])
    gallery.store.persons.create("default", "b", {})
    people = chain.from_iterable(repeat("ba"))
    move = lambda: gallery.store.corrections.move_face(  # noqa: E731
        "default", stored.face.face_id, next(people)
    )
    readings = moving(monkeypatch, times, move)
    if times < MAX_REPEATS:
        assert found(gallery, probe)[0].face.person_id == "ba"[(times - 1) % 2]
    else:
        with pytest.raises(StoreUnavailable, match="faster than it can be searched"):
            found(gallery, probe)
    assert len(readings) == MAX_REPEATS


def test_a_search_at_once_is_done_again_where_this_process_made_the_change(
    gallery: Gallery, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    (probe,) = directions(1)
    (stored,) = enroll_person(gallery, "default", "a", None, [template(probe, "0")])
    gallery.store.persons.create("default", "b", {})
    record = gallery.require("default")
    moving(monkeypatch, 1, lambda: gallery.move_face("default", stored.face.face_id, "b"))
    result = gallery.identify_at_once(record, SearchQuery(probe[np.newaxis], 1))
    assert result is not None
    assert result.rows[0][0].face.person_id == "b"


def found(gallery: Gallery, probe: NDArray[np.float32]) -> list[Candidate]:
    return gallery.identify("default", probe[np.newaxis], 2).rows[0]


def test_persons_without_consent_do_not_look_like_changed_faces(
    gallery: Gallery, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that finds them is not repeated."""
    gallery.store.collections.update("default", None, {"consent_required": True})
    (probe,) = directions(1)
    consent = {"consent": {"reference": "1"}}
    enroll_person(gallery, "default", "ada", consent, [template(probe, "0")])
    gallery.store.persons.update(
        "default", "ada", {"consent": {"reference": "1", "withdrawn": True}}
    )
    searches: list[int] = []
    monkeypatch.setattr(Gallery, "_found", counted(Gallery._found, searches))
    assert found(gallery, probe) == []
    assert len(searches) == 1


def counted(call: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def count(*args: Any) -> Any:
        calls.append(1)
        return call(*args)

    return count
