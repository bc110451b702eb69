"""A collection calibrates on itself: a real database, made-up people."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.decision.calibration import Calibration
from app.decision.calibrations import Calibrations, calibrate_collection
from app.decision.domain import Domain, SharedDirection
from app.decision.fitting import calibrate
from app.decision.pair_lifts import CoveredFaces
from app.errors import CollectionNotFound, EmbeddingSpaceMismatch, NotEnoughData
from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.store.backends import create_engine
from app.store.records import NewTemplate
from app.store.schema import migrate
from app.store.sql.embeddings import MOST_SAMPLED
from app.store.store import Store
from tests.decision.conftest import people
from tests.decision.test_calibration import calibration
from tests.writing import delete_collection, enroll_person

DIMENSION = 64
NOW = datetime(2026, 11, 24, tzinfo=UTC)


def open_gallery(path: Path, space: str = "es-test") -> Gallery:
    engine = create_engine(f"sqlite:///{path}")
    migrate(engine)
    return Gallery(Store(engine), IndexFactory(2), space, DIMENSION)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    opened = open_gallery(tmp_path / "likeness.db")
    yield opened
    opened.store.close()


def fill(gallery: Gallery, count: int, second_ids: int = 0) -> None:
    """`count` people with two faces each; of the first few the second has an id of its own."""
    data = people(count, 2, dimension=DIMENSION, noise=0.3)
    for person in range(count):
        first, second = (
            NewTemplate(vector, f"{person}-{i}")
            for i, vector in enumerate(data.vectors[data.persons == person])
        )
        if person < second_ids:
            enroll_person(gallery, "default", f"p{person}", None, [first])
            enroll_person(gallery, "default", f"p{person} again", None, [second])
        else:
            enroll_person(gallery, "default", f"p{person}", None, [first, second])


def test_its_calibration_is_kept_and_put_to_use(gallery: Gallery) -> None:
    fill(gallery, 120)
    calibrations = Calibrations(
        gallery.store.calibrations,
        calibration(),
        0.5,
        embedding_space="es-test",
        precision="float32",
    )
    before = calibrations.chain(gallery.require("default")).calibrations
    assert [one.source.kind for one in before] == ["photos"]
    live = calibrate_collection(gallery, "default", np.random.default_rng(0), lambda: NOW)
    assert live.suspects == ()
    assert live.calibration.source.persons == 120
    after = calibrations.chain(gallery.require("default")).calibrations
    assert [one.source.kind for one in after] == ["collection", "photos"]
    assert after[0].calibration_id == live.calibration.calibration_id
    gallery.store.calibrations.clear("default")
    again = calibrations.chain(gallery.require("default")).calibrations
    assert [one.source.kind for one in again] == ["photos"]


def test_another_process_uses_it_at_once(gallery: Gallery, tmp_path: Path) -> None:
    fill(gallery, 100)
    other = open_gallery(tmp_path / "likeness.db")
    calibrations = Calibrations(
        other.store.calibrations, None, 0.5, embedding_space="es-test", precision="float32"
    )
    assert calibrations.chain(other.require("default")).calibrations == []
    live = calibrate_collection(gallery, "default", np.random.default_rng(0))
    (found,) = calibrations.chain(other.require("default")).calibrations
    assert found.calibration_id == live.calibration.calibration_id
    other.store.close()


def test_one_made_again_under_the_name_does_not_get_it(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(gallery, 100)

    def meanwhile(*arguments: Any) -> Calibration:
        made = calibrate(*arguments)
        delete_collection(gallery, "default")
        gallery.create_collection("default", {})
        return made

    monkeypatch.setattr("app.decision.calibrations.calibrate", meanwhile)
    with pytest.raises(CollectionNotFound, match="deleted meanwhile"):
        calibrate_collection(gallery, "default", np.random.default_rng(0))
    assert gallery.require("default").calibration_id is None


def test_second_ids_are_reported_and_left_out(gallery: Gallery) -> None:
    fill(gallery, 150, second_ids=3)
    live = calibrate_collection(gallery, "default", np.random.default_rng(0))
    found = {frozenset((s.person_id_a, s.person_id_b)) for s in live.suspects}
    assert found == {frozenset((f"p{i}", f"p{i} again")) for i in range(3)}
    assert live.calibration.source.left_out == 3
    content = str(gallery.store.calibrations.get(gallery.require("default")))
    assert "again" not in content  # nobody's id is kept in a calibration


def test_who_is_declared_different_is_no_suspect(gallery: Gallery) -> None:
    fill(gallery, 150, second_ids=3)
    gallery.store.pairs.declare("default", "p1 again", "p1")
    live = calibrate_collection(gallery, "default", np.random.default_rng(0))
    found = {frozenset((s.person_id_a, s.person_id_b)) for s in live.suspects}
    assert found == {frozenset((f"p{i}", f"p{i} again")) for i in (0, 2)}
    # They have a margin of their own: the rates of everybody else leave them out all the same.
    assert live.calibration.source.left_out == 3


def test_a_large_collection_is_sampled_by_whole_people(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.decision.calibrations.MAX_TEMPLATES", 220)
    fill(gallery, 150)
    source = calibrate_collection(gallery, "default", np.random.default_rng(0)).calibration.source
    assert (source.persons, source.faces) == (110, 220)


def test_too_few_people_leave_the_pack_s_in_use(gallery: Gallery) -> None:
    fill(gallery, 20)
    with pytest.raises(NotEnoughData, match="20 people are too few"):
        calibrate_collection(gallery, "default", np.random.default_rng(0))
    assert gallery.require("default").calibration_id is None


def test_of_nothing_and_of_another_space(gallery: Gallery, tmp_path: Path) -> None:
    with pytest.raises(CollectionNotFound):
        calibrate_collection(gallery, "nowhere", np.random.default_rng(0))
    fill(gallery, 1)
    other = open_gallery(tmp_path / "likeness.db", "es-other")
    with pytest.raises(EmbeddingSpaceMismatch):
        calibrate_collection(other, "default", np.random.default_rng(0))
    other.store.close()


def test_one_of_another_precision_is_not_used(gallery: Gallery) -> None:
    foreign = calibration(precision="float16")
    gallery.store.calibrations.set(
        gallery.store.collections.get("default"), foreign.calibration_id, foreign.content()
    )
    calibrations = Calibrations(
        gallery.store.calibrations, None, 0.5, embedding_space="es-test", precision="float32"
    )
    assert calibrations.chain(gallery.require("default")).calibrations == []


def test_nor_one_of_another_space(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    own = calibration()
    gallery.store.calibrations.set(
        gallery.store.collections.get("default"), own.calibration_id, own.content()
    )
    running = {"embedding_space": "es-other", "precision": "float32"}
    calibrations = Calibrations(gallery.store.calibrations, None, 0.5, **running)
    with caplog.at_level("WARNING", logger="likeness"):
        assert calibrations.chain(gallery.require("default")).calibrations == []
    (record,) = caplog.records  # expected after a change of the pack: no traceback
    assert (record.message, record.exc_info) == ("a calibration is not used", None)
    fields = record.fields  # type: ignore[attr-defined]
    assert fields["calibration_id"] == own.calibration_id
    assert "es-test" in fields["reason"]


@pytest.mark.parametrize("change", ["none", "digits", "covered", "weight", "uncovered", "dropped"])
def test_one_is_used_while_scores_are_no_higher_than_those_it_was_counted_on(
    gallery: Gallery, change: str
) -> None:
    """The pack's direction may be fitted again, and covered faces may be known of since."""
    covered = covered_faces()
    shared = SharedDirection.fit({"a": np.eye(DIMENSION, dtype=np.float32)[:1]}, "x")
    before, now = shared, shared
    if change == "digits":
        now = shared.model_copy(update={"direction": (1.0, 1e-6, *shared.direction[2:])})
    if change == "covered":
        now = shared.model_copy(update={"covered": covered})
    if change == "weight":
        now = shared.model_copy(update={"weight": 1.0})
    if change == "uncovered":
        before = shared.model_copy(update={"covered": covered})
    own = calibration(domain=Domain(shared=before, likeness=0.2).model_dump())
    pack = calibration(domain=Domain(shared=now, likeness=0.2).model_dump())
    gallery.store.calibrations.set(
        gallery.store.collections.get("default"), own.calibration_id, own.content()
    )
    calibrations = Calibrations(
        gallery.store.calibrations, calibration() if change == "dropped" else pack, 0.5,
        embedding_space="es-test", precision="float32",
    )  # fmt: skip
    used = own in calibrations.chain(gallery.require("default")).calibrations
    assert used is (change in ("none", "digits", "covered"))


def covered_faces() -> CoveredFaces:
    return CoveredFaces(
        direction=(0.1,) * DIMENSION, offset=0, weight=0.1, source="x", faces=9, digest=64 * "0"
    )


def test_a_person_with_very_many_templates_leaves_room_for_others(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of them are taken, evenly spaced, at any place in the random order."""
    fill(gallery, 120)
    heavy = people(1, 403, dimension=DIMENSION, noise=0.3).vectors
    new = [NewTemplate(vector, f"heavy-{n}") for n, vector in enumerate(heavy)]
    enroll_person(gallery, "default", "heavy", None, new)
    record = gallery.require("default")
    for seed in range(8):
        found = gallery.store.embeddings.sample(record, 300, np.random.default_rng(seed))
        _, held = np.unique(found.person_keys, return_counts=True)
        assert len(held) >= 121
        assert held.max() <= MOST_SAMPLED
    mine = found.keys[found.person_keys == found.person_keys[np.argmax(found.keys)]]
    assert len(mine) == MOST_SAMPLED
    monkeypatch.setattr("app.decision.calibrations.MAX_TEMPLATES", 300)
    made = calibrate_collection(gallery, "default", np.random.default_rng(0)).calibration
    assert made.source.persons == 121
