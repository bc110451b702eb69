"""Persons are deleted by age, where the policy says so."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event
from typer.testing import CliRunner

from app.cli.commands import app
from app.errors import StoreUnavailable
from app.gallery import retention as module
from app.gallery.gallery import Gallery
from app.gallery.retention import (
    BATCHES,
    CHECK_EVERY_S,
    UNSTORED,
    MatchTimes,
    RetentionTask,
)
from app.services import Services, build_services
from app.settings import Settings
from app.store.records import CollectionRecord, FaceName, PersonTemplate
from app.store.sql.retention import Expiry
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_gallery, template
from tests.waiting import until
from tests.writing import store_person

DAY = timedelta(days=1)


class Calendar:
    """The time that stores and tasks are given."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)
        self.set_by = timedelta()  # by how much somebody has set it

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def calendar() -> Calendar:
    return Calendar()


@pytest.fixture
def aging(store: Store, calendar: Calendar) -> Store:
    store.database.clock = calendar
    store.collections.create("staff", SPACE, DIMENSION, {}, {"retention_days": 30})
    return store


def enroll(store: Store, *people: str, collection: str = "staff") -> None:
    for person in people:
        seed = abs(hash((person, store.database.clock()))) % 2**32
        vector = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
        new = template(vector / np.linalg.norm(vector), f"{person} {store.database.clock()}")
        store_person(store, collection, person, None, [new])


def left(store: Store, collection: str = "staff") -> list[str]:
    return [one.person_id for one in store.persons.page(collection, None, 1000).items]


def note(times: MatchTimes, store: Store, *people: str, collection: str = "staff") -> None:
    """Note that these persons were matched."""
    faces = [store.templates.page(collection, one, None, 9).items[0] for one in people]
    times.note(store.collections.get(collection), faces)


def task_of(
    gallery: Gallery, calendar: Calendar, before: Callable[[str, Sequence[str]], object] = print
) -> RetentionTask:
    def seconds() -> float:
        return (calendar.now - calendar.set_by).timestamp()

    return RetentionTask(gallery, lambda: None, before, calendar, seconds)


class TestWho:
    def test_neither_enrolled_nor_matched(self, aging: Store, calendar: Calendar) -> None:
        enroll(aging, "old", "matched", "again")
        aging.persons.create("staff", "faceless", {})
        calendar.now += 20 * DAY
        enroll(aging, "again", "new")
        times = MatchTimes(aging.retention, calendar)
        gone = FaceName(7, 3, "00000000-0000-0000-0000-000000000000", "nobody")
        times.note(aging.collections.get("staff"), [gone])
        note(times, aging, "matched")
        times.store()
        calendar.now += 12 * DAY
        before = calendar.now - 30 * DAY
        assert aging.retention.expired("staff", Expiry(before), 9) == ["faceless", "old"]
        assert aging.retention.expired("staff", Expiry(before), 1, "faceless") == ["old"]
        assert aging.retention.count_expired("staff", Expiry(before)) == 2

    def test_a_match_soon_after_midnight(self, aging: Store, calendar: Calendar) -> None:
        """Nothing has been stored on the new day yet."""
        enroll(aging, "ada")
        times = MatchTimes(aging.retention, calendar)
        for day in (calendar.now, calendar.now + DAY):
            calendar.now = day
            note(times, aging, "ada")
            times.store()
        after_the_first = Expiry(calendar.now - timedelta(hours=12))
        assert aging.retention.expired("staff", after_the_first, 9) == []

    def test_a_match_meanwhile_keeps_the_person(self, aging: Store, calendar: Calendar) -> None:
        enroll(aging, "ada", "bob")
        calendar.now += 31 * DAY
        before = calendar.now - 30 * DAY
        due = aging.retention.expired("staff", Expiry(before), 9)
        times = MatchTimes(aging.retention, calendar)
        note(times, aging, "ada")
        times.store()
        assert aging.retention.delete_expired("staff", due, lambda _: Expiry(before)).persons == 1
        assert left(aging) == ["ada"]

    def test_a_match_waits_for_a_deletion_that_has_begun(
        self, aging: Store, calendar: Calendar
    ) -> None:
        """Otherwise it could be stored, and the person deleted all the same."""
        enroll(aging, "ada")
        calendar.now += 31 * DAY
        (face,) = aging.templates.page("staff", "ada", None, 9).items
        ada = {(aging.collections.get("staff").key, face.face_id)}
        with ThreadPoolExecutor(1) as threads:
            matches = []

            def before(_: CollectionRecord) -> Expiry:
                matches.append(threads.submit(aging.retention.note_matches, ada, calendar.now))
                with pytest.raises(TimeoutError):
                    matches[0].result(0.3)
                return Expiry(calendar.now - 30 * DAY)

            aging.retention.delete_expired("staff", ["ada"], before)
            matches[0].result()
        assert left(aging) == []

    def test_matches_are_noted_only_under_such_a_policy(
        self, aging: Store, calendar: Calendar
    ) -> None:
        enroll(aging, "ada", collection="default")
        times = MatchTimes(aging.retention, calendar)
        note(times, aging, "ada", collection="default")
        times.store()
        calendar.now += DAY
        assert aging.retention.expired("default", Expiry(calendar.now), 9) == ["ada"]

    def test_the_same_photo_again_keeps_the_person(self, aging: Store, calendar: Calendar) -> None:
        enroll(aging, "ada")
        (face,) = aging.templates.page("staff", "ada", None, 9).items
        vector = aging.embeddings.of_person("staff", "ada")[1][0]
        again = template(vector, f"ada {calendar.now}")
        calendar.now += 31 * DAY
        (stored,) = store_person(aging, "staff", "ada", None, [again])
        assert [stored.duplicate, stored.face.face_id] == [True, face.face_id]
        assert aging.retention.expired("staff", Expiry(calendar.now - 30 * DAY), 9) == []

    def test_an_import_of_what_is_there_does_not(self, aging: Store, calendar: Calendar) -> None:
        """Else an export that is imported every month would keep everybody."""
        enroll(aging, "ada", "bob")
        vector = aging.embeddings.of_person("staff", "ada")[1][0]
        known = template(vector, f"ada {calendar.now}")
        calendar.now += 31 * DAY
        rows = [("ada", known), ("bob", template(vector, "new")), ("eve", known)]
        stored = [PersonTemplate(person, {"n": 1}, one) for person, one in rows]
        answers = aging.imports.enroll("staff", stored, SPACE)
        assert [one is None for one in answers] == [True, False, False]
        assert aging.retention.expired("staff", Expiry(calendar.now - 30 * DAY), 9) == ["ada"]

    def test_a_merged_person_keeps_the_later_match(self, aging: Store, calendar: Calendar) -> None:
        enroll(aging, "ada", "ada2")
        calendar.now += 31 * DAY
        times = MatchTimes(aging.retention, calendar)
        note(times, aging, "ada2")
        times.store()
        aging.corrections.merge_persons("staff", "ada2", "ada")
        assert aging.retention.expired("staff", Expiry(calendar.now - 30 * DAY), 9) == []

    @pytest.mark.parametrize("stored_first", [False, True])
    def test_the_person_who_was_matched_is_not_the_id(
        self, aging: Store, calendar: Calendar, stored_first: bool
    ) -> None:
        """Ids change between a match and the moment at which it is stored, and during a day."""
        enroll(aging, "ada", "bob", "eve", "ivy")
        calendar.now += 31 * DAY
        times = MatchTimes(aging.retention, calendar)
        note(times, aging, "ada", "eve")
        if stored_first:
            times.store()
        aging.persons.update("staff", "ada", new_id="ada2")
        aging.persons.update("staff", "bob", new_id="ada")
        aging.corrections.merge_persons("staff", "eve", "ivy")
        times.store()
        rule = Expiry(calendar.now - 30 * DAY)
        assert aging.retention.expired("staff", rule, 9) == ["ada"]
        note(times, aging, "ada")  # on the same day, another person
        times.store()
        assert aging.retention.expired("staff", rule, 9) == []

    def test_a_match_of_a_known_day_writes_nothing(self, aging: Store, calendar: Calendar) -> None:
        enroll(aging, "ada")
        calendar.now += DAY
        times = MatchTimes(aging.retention, calendar)
        statements: list[str] = []

        def record(_: object, __: object, statement: str, *___: object) -> None:
            statements.append(statement)

        event.listen(aging.database.engine, "before_cursor_execute", record)
        for _ in range(2):
            note(times, aging, "ada")
            times.store()
        written = [one for one in statements if one.startswith("UPDATE")]
        assert len(written) == 1

    def test_not_before_the_day_is_over(self, aging: Store, calendar: Calendar) -> None:
        enroll(aging, "ada")
        calendar.now = datetime(2026, 4, 30, 23, 59, tzinfo=UTC)
        times = MatchTimes(aging.retention, calendar)
        note(times, aging, "ada")
        times.store()
        calendar.now += 30 * DAY
        assert aging.retention.expired("staff", Expiry(calendar.now - 30 * DAY), 9) == []
        calendar.now += timedelta(minutes=1)
        assert aging.retention.expired("staff", Expiry(calendar.now - 30 * DAY), 9) == ["ada"]


class TestTask:
    @pytest.fixture
    def gallery(self, database: Path, calendar: Calendar) -> Gallery:
        gallery = open_gallery(database)
        gallery.store.database.clock = calendar
        gallery.create_collection("staff", {}, {"retention_days": 30})
        return gallery

    def test_they_are_erased_and_no_longer_found(
        self, gallery: Gallery, calendar: Calendar
    ) -> None:
        enroll(gallery.store, "old")
        (probe,) = gallery.store.embeddings.of_person("staff", "old")[1]
        assert gallery.identify("staff", probe[None], 1).rows[0]
        calendar.now += 31 * DAY
        enroll(gallery.store, "new")
        noted: list[tuple[str, list[str]]] = []
        task = task_of(gallery, calendar, lambda name, due: noted.append((name, [*due])))
        task.round()
        assert noted == [("staff", ["old"])]
        assert left(gallery.store) == ["new"]
        (candidate,) = gallery.identify("staff", probe[None], 5).rows[0]
        assert candidate.face.person_id == "new"
        entry = gallery.store.audit.latest(1)[0].members
        assert [entry["action"], entry["actor"]] == ["person.deleted", "service"]

    def test_many_go_in_several_rounds(
        self, gallery: Gallery, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MOST_AT_ONCE", 4)
        for number in range(4 * BATCHES + 5):
            gallery.store.persons.create("staff", f"p{number}", {})
        calendar.now += 31 * DAY
        task = task_of(gallery, calendar)
        task.round()
        assert len(left(gallery.store)) == 5
        task.round()
        assert left(gallery.store) == []

    def test_a_round_takes_many_collections_and_no_more_persons(
        self, gallery: Gallery, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One collection a round would be too few for thousands of collections in an hour."""
        monkeypatch.setattr(module, "MOST_AT_ONCE", 4)
        names = [f"c{number}" for number in range(2 * BATCHES)]
        for name in names:
            gallery.create_collection(name, {}, {"retention_days": 30})
        for name in names[:2] + names[-1:]:
            for number in range(4 * (BATCHES - 1)):
                gallery.store.persons.create(name, f"p{number}", {})
        calendar.now += 31 * DAY
        task, sizes = task_of(gallery, calendar), []
        for _ in range(3):
            task.round()
            sizes.append(sum(len(left(gallery.store, name)) for name in names))
        assert sizes == [4 * (2 * BATCHES - 3), 4 * (BATCHES - 3), 0]

    def test_those_who_are_kept_are_looked_at_once(
        self, gallery: Gallery, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next persons are found without reading from the first one on again."""
        monkeypatch.setattr(module, "MOST_AT_ONCE", 2)
        store = gallery.store
        enroll(store, "a", "b", "c", "d")
        calendar.now += 31 * DAY
        enroll(store, "a", "b")

        def matched(_: str, due: Sequence[str]) -> None:
            asked.append([*due])
            enroll(store, *due)

        asked: list[list[str]] = []
        enroll(store, "e")
        task_of(gallery, calendar, matched).round()
        assert asked == [["c", "d"]]
        assert left(store) == ["a", "b", "c", "d", "e"]

    def test_a_failure_between_two_transactions(
        self, gallery: Gallery, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those who were deleted are erased everywhere, the others with the next round."""
        monkeypatch.setattr(module, "MOST_AT_ONCE", 1)
        enroll(gallery.store, "ada", "bob")
        (probe,) = gallery.store.embeddings.of_person("staff", "ada")[1]
        gallery.identify("staff", probe[None], 1)
        calendar.now += 31 * DAY
        calls = []

        def before(*given: object) -> None:
            calls.append(given)
            if len(calls) == 2:
                raise StoreUnavailable("away")

        task = task_of(gallery, calendar, before)
        with pytest.raises(StoreUnavailable):
            task.round()
        assert left(gallery.store) == ["bob"]
        assert gallery.store.database.eraser.pending_s() == 0
        assert gallery.size("staff").persons == 1
        task.round()
        assert left(gallery.store) == []

    def test_a_match_in_another_process_that_has_not_stored_it_yet(
        self, gallery: Gallery, calendar: Calendar, database: Path
    ) -> None:
        """That process is building an index. The person has until the end of the day; the first
        check of this process comes right after."""
        enroll(gallery.store, "ada", "bob")
        calendar.now = datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC)
        other = open_gallery(database).store
        times = MatchTimes(other.retention, calendar)
        note(times, other, "ada")
        calendar.now += 2 * timedelta(seconds=1)
        task_of(gallery, calendar).round()
        assert left(gallery.store) == ["ada", "bob"]
        calendar.now += timedelta(minutes=50)
        times.store()
        task_of(gallery, calendar).round()
        calendar.now += UNSTORED
        task_of(gallery, calendar).round()
        assert left(gallery.store) == ["ada"]

    def test_it_looks_once_an_hour(self, gallery: Gallery, calendar: Calendar) -> None:
        task = task_of(gallery, calendar)
        task.round()
        task.round()
        gallery.store.persons.create("staff", "ada", {})
        calendar.now += timedelta(seconds=CHECK_EVERY_S / 2)
        task.round()
        calendar.now += 31 * DAY
        task.round()
        assert left(gallery.store) == []

    def test_a_clock_that_was_set_erases_nobody_for_an_hour(
        self, gallery: Gallery, calendar: Calendar
    ) -> None:
        gallery.store.persons.create("staff", "ada", {})
        task = task_of(gallery, calendar)
        task.round()
        calendar.now += timedelta(seconds=CHECK_EVERY_S * 0.9)
        task.round()
        calendar.now += 3650 * DAY
        calendar.set_by = 3650 * DAY
        for _ in range(3):  # the next check would have been in the first of these rounds
            calendar.now += timedelta(seconds=CHECK_EVERY_S / 4)
            task.round()
        assert left(gallery.store) == ["ada"]
        calendar.now += timedelta(seconds=CHECK_EVERY_S)
        task.round()
        assert left(gallery.store) == []

    def test_a_machine_that_was_suspended(
        self, gallery: Gallery, calendar: Calendar, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        suspended = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        usual = time.clock_gettime  # of threads of other tests

        def clock_gettime(clock: int) -> float:
            return calendar.now.timestamp() if clock == suspended else usual(clock)

        monkeypatch.setattr(time, "clock_gettime", clock_gettime)
        gallery.store.persons.create("staff", "ada", {})
        task = RetentionTask(gallery, lambda: None, print, calendar)
        task.round()
        calendar.now += 31 * DAY
        task.round()
        assert left(gallery.store) == [], "the clock was not set"

    def test_a_policy_that_is_withdrawn_at_the_last_moment(
        self, gallery: Gallery, calendar: Calendar
    ) -> None:
        gallery.store.persons.create("staff", "ada", {})
        calendar.now += 31 * DAY

        def withdraw(*_: object) -> None:
            gallery.store.collections.update("staff", None, {"retention_days": None})

        task_of(gallery, calendar, withdraw).round()
        assert left(gallery.store) == ["ada"]

    def test_a_policy_that_was_withdrawn(self, gallery: Gallery, calendar: Calendar) -> None:
        gallery.store.persons.create("staff", "ada", {})
        calendar.now += 31 * DAY
        gallery.store.collections.update("staff", None, {"retention_days": None})
        task_of(gallery, calendar).round()
        assert left(gallery.store) == ["ada"]


def test_the_command_shows_and_erases_nothing(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = open_gallery(database)
    gallery.store.database.clock = lambda: datetime(2020, 1, 1, tzinfo=UTC)
    enroll(gallery.store, "ada", "bob", collection="default")
    gallery.close()
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(database.parent))
    asked = ["retention", "--collection", "default"]
    shown = CliRunner().invoke(app, [*asked, "--days", "1095"])
    assert "default: 2 persons" in shown.output
    assert "ada" in shown.output
    assert "no retention_days" in CliRunner().invoke(app, asked).output
    assert "nobody would be deleted" in CliRunner().invoke(app, ["retention"]).output
    assert left(open_gallery(database).store, "default") == ["ada", "bob"]


def note_match(services: Services) -> None:
    """Note that ada is matched, who was last active in 2020."""
    store, policy = services.gallery.store, {"retention_days": 30}
    store.collections.update("default", None, policy)
    record = services.gallery.require("default")
    vector = np.eye(record.dimension, dtype=np.float32)[0]
    (stored,) = store_person(store, "default", "ada", None, [template(vector, "photo")])
    with store.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE persons SET active_at = '2020-01-01 00:00:00.000000'")
    name = FaceName(stored.face.template_key, stored.face.person_key, stored.face.face_id, "ada")
    services.matches.note(record, [name])


def is_stored(services: Services) -> bool:
    active = services.gallery.store.persons.get("default", "ada").active_at
    return active is not None and active.year > 2020


def test_matches_that_are_not_stored_yet_are_stored_at_the_end(tmp_path: Path) -> None:
    """A stop between two rounds of maintenance forgets nobody."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    services.maintenance.stop()
    note_match(services)
    assert not is_stored(services)
    services.close()
    with closing(build_services(Settings(data_dir=tmp_path / "data"))) as again:
        assert is_stored(again)


def test_matches_are_stored_before_indexes_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That can take minutes, in which a kill would lose them."""
    with closing(build_services(Settings(data_dir=tmp_path / "data"))) as services:
        note_match(services)
        stored: list[bool] = []
        monkeypatch.setattr(services.gallery, "prepare", lambda: stored.append(is_stored(services)))
        services.maintenance.start()
        until(lambda: stored)
    assert stored[0]
