"""Persons are erased by age, where the policy says so."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli.commands import app
from app.gallery.gallery import Gallery
from app.gallery.retention import CHECK_EVERY, MOST_AT_ONCE, MatchTimes, RetentionTask
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_gallery, template

DAY = timedelta(days=1)


class Calendar:
    """The time that stores and tasks are given."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, tzinfo=UTC)

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
        store.templates.enroll(collection, person, None, [new])


def left(store: Store, collection: str = "staff") -> list[str]:
    return [one.person_id for one in store.persons.page(collection, None, 1000).items]


class TestWho:
    def test_neither_enrolled_nor_matched(self, aging: Store, calendar: Calendar) -> None:
        enroll(aging, "old", "matched", "again")
        aging.persons.create("staff", "faceless", {})
        calendar.now += 20 * DAY
        enroll(aging, "again", "new")
        times = MatchTimes(aging.persons, calendar)
        times.note(aging.collections.get("staff"), ["matched", "nobody"])
        times.store()
        calendar.now += 11 * DAY
        before = calendar.now - 30 * DAY
        assert aging.persons.inactive("staff", before, 9) == ["old", "faceless"]
        assert aging.persons.count_inactive("staff", before) == 2

    def test_a_match_meanwhile_keeps_the_person(self, aging: Store, calendar: Calendar) -> None:
        enroll(aging, "ada", "bob")
        calendar.now += 31 * DAY
        before = calendar.now - 30 * DAY
        due = aging.persons.inactive("staff", before, 9)
        times = MatchTimes(aging.persons, calendar)
        times.note(aging.collections.get("staff"), ["ada"])
        times.store()
        assert aging.persons.delete_inactive("staff", due, before).persons == 1
        assert left(aging) == ["ada"]

    def test_matches_are_noted_only_under_such_a_policy(
        self, aging: Store, calendar: Calendar
    ) -> None:
        enroll(aging, "ada", collection="default")
        times = MatchTimes(aging.persons, calendar)
        times.note(aging.collections.get("default"), ["ada"])
        times.store()
        calendar.now += DAY
        assert aging.persons.inactive("default", calendar.now, 9) == ["ada"]


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
        task = RetentionTask(gallery, lambda name, due: noted.append((name, [*due])), calendar)
        task.round()
        assert noted == [("staff", ["old"])]
        assert left(gallery.store) == ["new"]
        (candidate,) = gallery.identify("staff", probe[None], 5).rows[0]
        assert candidate.face.person_id == "new"
        entry = gallery.store.audit.latest(1)[0].members
        assert [entry["action"], entry["actor"]] == ["person.deleted", "service"]

    def test_many_go_in_several_rounds(self, gallery: Gallery, calendar: Calendar) -> None:
        for number in range(MOST_AT_ONCE + 5):
            gallery.store.persons.create("staff", f"p{number}", {})
        calendar.now += 31 * DAY
        task = RetentionTask(gallery, lambda *_: None, calendar)
        task.round()
        assert len(left(gallery.store)) == 5
        task.round()
        assert left(gallery.store) == []

    def test_it_looks_once_an_hour(self, gallery: Gallery, calendar: Calendar) -> None:
        task = RetentionTask(gallery, lambda *_: None, calendar)
        task.round()
        task.round()
        gallery.store.persons.create("staff", "ada", {})
        calendar.now += CHECK_EVERY / 2
        task.round()
        calendar.now += 31 * DAY
        task.round()
        assert left(gallery.store) == []

    def test_a_policy_that_was_withdrawn(self, gallery: Gallery, calendar: Calendar) -> None:
        gallery.store.persons.create("staff", "ada", {})
        calendar.now += 31 * DAY
        gallery.store.collections.update("staff", None, {"retention_days": None})
        RetentionTask(gallery, lambda *_: None, calendar).round()
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
    assert left(open_gallery(database).store, "default") == ["ada", "bob"]
