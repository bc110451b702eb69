"""Galleries with known mistakes: each is found as what it is, and nothing else is."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from app.decision.calibration import Calibration
from app.decision.calibrations import Calibrations
from app.decision.comparisons import LabelledEmbeddings
from app.decision.fitting import Labelled, calibrate
from app.decision.hygiene import find_gallery_issues
from app.index.person_scores import PersonScore
from app.services import Services, build_services
from app.settings import Settings
from app.store.records import NewTemplate, PersonTemplate
from app.types import FloatArray, Quality
from tests.writing import delete_person, enroll_person

PEOPLE, FACES = 60, 4
GOOD = Quality(100, 0, 0, 0, 300, 0.5, 0.9, 80.0)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    services = build_services(Settings(data_dir=tmp_path_factory.mktemp("hygiene")))
    yield services
    services.close()


def unit(vectors: np.ndarray) -> FloatArray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def calibrated(
    services: Services, name: str, vectors: FloatArray, labels: np.ndarray
) -> Calibration:
    """A collection's own calibration, on these templates and persons."""
    made = calibrate(
        Labelled(LabelledEmbeddings.of(vectors, labels), "collection", name),
        services.pack.embedding_space,
        services.gallery.precision,
    )
    services.gallery.store.calibrations.set(
        services.gallery.store.collections.get(name), made.calibration_id, made.content()
    )
    return made


@pytest.fixture(scope="module")
def findings(services: Services) -> dict[str, list[dict[str, object]]]:
    """Sixty people with four faces each; one under two ids, two faces swapped in, one of nobody."""
    random = np.random.default_rng(11)
    dimension = services.pack.recogniser.dimension
    centres = unit(random.normal(size=(PEOPLE, dimension)))

    def faces(person: int, count: int = FACES) -> FloatArray:
        return unit(centres[person] + 0.05 * random.normal(size=(count, dimension)))

    def enroll(person_id: str, vectors: FloatArray, quality: Quality = GOOD) -> None:
        made = [
            NewTemplate(vector, f"{person_id}-{i}-{vector[0]}", asdict(quality))
            for i, vector in enumerate(vectors)
        ]
        enroll_person(services.gallery, "default", person_id, None, made)

    for person in range(PEOPLE):
        enroll(f"p{person}", faces(person))
    enroll("p0-again", faces(0))
    enroll("p1", faces(2, 1))  # a face of p2 under p1
    enroll("p3", unit(random.normal(size=(1, dimension))))
    enroll("blurred", unit(random.normal(size=(1, dimension))), Quality(100, 0, 0, 0, 2, 0.5, 0.9))
    seen: list[tuple[int, int]] = []
    found = find_gallery_issues(
        services.gallery, services.calibrations, "default", lambda *step: seen.append(step)
    )
    assert seen[-1] == (found.faces, found.faces)
    assert (found.persons, found.faces) == (PEOPLE + 2, PEOPLE * FACES + FACES + 3)
    return asdict(found)


def test_little_of_this_is_expected_by_chance(findings: dict[str, Any]) -> None:
    # At the default policy one search in a hundred meets a stranger, and each pair is met twice.
    assert 0.5 < findings["duplicates_by_chance"] < 1.3
    assert 0 < findings["mislabels_by_chance"] < 0.5


def test_one_person_under_two_ids(findings: dict[str, list[dict[str, object]]]) -> None:
    pairs = [{one["person_id_a"], one["person_id_b"]} for one in findings["duplicates"]]
    assert pairs[0] == {"p0", "p0-again"}
    assert {"p1", "p2"} not in pairs
    assert len(pairs) == 1
    # Alike beyond what the calibration has ever seen of two people: below a rate is all it says.
    (pair,) = findings["duplicates"]
    assert (pair["expected_by_chance"], pair["fmr"]) == (None, None)
    assert pair["fmr_interval"][0] == 0.0 < pair["fmr_interval"][1] < 1e-4


def test_a_face_under_the_wrong_id(findings: dict[str, list[dict[str, object]]]) -> None:
    wrong = [(one["person_id"], one["looks_like"]) for one in findings["mislabels"]]
    assert wrong == [("p1", "p2")]


def test_a_face_like_nobody_s(findings: dict[str, list[dict[str, object]]]) -> None:
    (outlier,) = findings["outliers"]
    assert outlier["person_id"] == "p3"
    # As many strangers as that are no less like p3 than this face is.
    low, high = outlier["fmr_interval"]
    assert 0.01 < low <= outlier["fmr"] <= high <= 1


def test_a_weak_single_face(findings: dict[str, list[dict[str, object]]]) -> None:
    (weak,) = findings["weak"]
    assert (weak["person_id"], weak["reasons"]) == ("blurred", ("blurred",))
    assert weak["quality"]["sharpness"] == 2


def test_the_worst_are_listed_and_all_are_counted(
    services: Services, findings: dict[str, Any]
) -> None:
    nothing = lambda *_: None  # noqa: E731
    whole = find_gallery_issues(services.gallery, services.calibrations, "default", nothing)
    some = find_gallery_issues(services.gallery, services.calibrations, "default", nothing, 1)
    kinds = ("duplicates", "mislabels", "outliers", "weak", "degraded")
    assert some.counts == whole.counts == {kind: len(getattr(whole, kind)) for kind in kinds}
    for kind in kinds:
        assert getattr(some, kind) == getattr(whole, kind)[:1]


def test_a_correction_removes_the_finding(
    services: Services, findings: dict[str, list[dict[str, object]]]
) -> None:
    (wrong,) = findings["mislabels"]
    services.gallery.move_face("default", wrong["face_id"], wrong["looks_like"])
    services.gallery.merge_persons("default", "p0-again", "p0")
    found = find_gallery_issues(services.gallery, services.calibrations, "default", lambda *_: None)
    assert found.duplicates == found.mislabels == ()


def test_strangers_who_look_alike_are_as_many_as_expected(services: Services) -> None:
    """Directions of few dimensions, in a collection that was calibrated on such: all that is found
    is chance."""
    random = np.random.default_rng(2)
    dimension, few = services.pack.recogniser.dimension, 24

    def faces(count: int) -> FloatArray:
        centre, noise = random.normal(size=few), random.normal(size=(count, few))
        made = np.zeros((count, dimension), np.float32)
        made[:, :few] = unit(centre + 0.5 * noise)
        return made

    people = [faces(count) for count in [8, 4, 2, 1] * 50]
    vectors = np.concatenate(people)
    labels = np.repeat(np.arange(len(people)), [len(one) for one in people])
    gallery = services.gallery
    gallery.create_collection("alike", {}, {"target_fpir": 0.5})
    rows = [
        PersonTemplate(f"p{person}", None, NewTemplate(vector, str(i)))
        for i, (person, vector) in enumerate(zip(labels, vectors, strict=True))
    ]
    gallery.enroll_many("alike", rows)
    calibrated(services, "alike", vectors, labels)
    found = find_gallery_issues(gallery, services.calibrations, "alike", lambda *_: None)
    assert found.duplicates_by_chance is not None
    assert found.counts["duplicates"] == len(found.duplicates) > 50
    worst = find_gallery_issues(gallery, services.calibrations, "alike", lambda *_: None, 20)
    assert worst.duplicates == found.duplicates[:20]
    assert worst.counts == found.counts
    assert found.duplicates_by_chance == pytest.approx(len(found.duplicates), rel=0.4)
    assert found.mislabels_by_chance is not None
    assert found.mislabels_by_chance == pytest.approx(len(found.mislabels), abs=10, rel=0.5)
    # By the least similar pair all of them are there, those too that are taken for mislabels.
    last = found.duplicates[-1].expected_by_chance
    assert last is not None
    assert last >= 0.9 * found.duplicates_by_chance


def test_rates_are_those_of_the_calibration_that_decides(services: Services) -> None:
    """That of a few people does not reach the collection's target; the pack's does."""
    gallery, random = services.gallery, np.random.default_rng(3)
    gallery.create_collection("few", {})
    centres = unit(random.normal(size=(100, services.pack.recogniser.dimension)))
    vectors = unit(
        np.repeat(centres, 2, axis=0) + 0.02 * random.normal(size=(200, centres.shape[1]))
    )
    labels = np.repeat(np.arange(100), 2)
    for person, vector in zip(labels, vectors, strict=True):
        made = [NewTemplate(vector, f"{person}-{vector[0]}")]
        enroll_person(gallery, "few", f"p{person}", None, made)
    enroll_person(gallery, "few", "p0-again", None, [NewTemplate(vectors[0], "again")])
    own = calibrated(services, "few", vectors, labels)
    found = find_gallery_issues(gallery, services.calibrations, "few", lambda *_: None)
    _, pack = services.calibrations.chain(gallery.require("few"), PersonScore.BEST).calibrations
    (duplicate,) = found.duplicates
    assert duplicate.fmr_interval is not None
    assert duplicate.fmr_interval[1] == pack.fmr.upper[-1] < own.fmr.upper[-1]


def test_a_face_whose_others_are_deleted_meanwhile_is_no_outlier(services: Services) -> None:
    gallery = services.gallery
    gallery.create_collection("deleting", {})
    vectors = np.eye(services.pack.recogniser.dimension, dtype=np.float32)[:3]
    made = [NewTemplate(vector, str(i)) for i, vector in enumerate(vectors)]
    stored = enroll_person(gallery, "deleting", "ada", None, made)
    others = [one.face.face_id for one in stored[1:]]

    def delete_the_others(_done: int, _total: int) -> None:
        while others:
            gallery.delete_face("deleting", others.pop())

    assert (
        len(
            find_gallery_issues(
                gallery, services.calibrations, "deleting", lambda *_: None
            ).outliers
        )
        == 3
    )
    assert (
        find_gallery_issues(gallery, services.calibrations, "deleting", delete_the_others).outliers
        == ()
    )


def test_without_a_calibration_chance_is_unknown(services: Services) -> None:
    uncalibrated = Calibrations(
        services.gallery.store.calibrations,
        None,
        0.5,
        embedding_space=services.pack.embedding_space,
        precision=services.gallery.precision,
    )
    found = find_gallery_issues(services.gallery, uncalibrated, "default", lambda *_: None)
    assert found.threshold == 0.5
    assert (found.duplicates_by_chance, found.mislabels_by_chance) == (None, None)
    assert {one.fmr for one in found.duplicates} <= {None}
    assert found.outliers == ()


def test_many_second_ids_hide_none_of_one_another(services: Services) -> None:
    """They once raised the threshold of their gallery, up to that of identical photos."""
    services.gallery.create_collection("second-ids", {})
    random = np.random.default_rng(12)
    dimension = services.pack.recogniser.dimension
    people = unit(random.normal(size=(45, dimension)))
    others = unit(people + 0.05 * random.normal(size=people.shape))  # similarities of about 0.82
    for number, (one, other) in enumerate(zip(people, others, strict=True)):
        for person_id, vector in ((f"emp-{number}", one), (f"name-{number}", other)):
            made = [NewTemplate(vector, person_id, asdict(GOOD))]
            enroll_person(services.gallery, "second-ids", person_id, None, made)
    found = find_gallery_issues(
        services.gallery, services.calibrations, "second-ids", lambda *_: None
    )
    assert found.threshold < 0.6
    pairs = {frozenset((one.person_id_a, one.person_id_b)) for one in found.duplicates}
    assert pairs == {frozenset((f"emp-{n}", f"name-{n}")) for n in range(45)}


def test_a_quality_that_is_none_is_no_reason(services: Services) -> None:
    services.gallery.create_collection("qualities", {})
    qualities = [{}, {"sharpness": "2"}, {"embedding_norm": "short"}, asdict(GOOD) | {"new": 1}]
    qualities.append(asdict(GOOD) | {"sharpness": 2})
    vectors = np.eye(services.pack.recogniser.dimension, dtype=np.float32)
    for i, quality in enumerate(qualities):
        enroll_person(
            services.gallery, "qualities", f"q{i}", None, [NewTemplate(vectors[i], str(i), quality)]
        )
    found = find_gallery_issues(
        services.gallery, services.calibrations, "qualities", lambda *_: None
    )
    assert [one.person_id for one in found.weak] == ["q4"]


def test_an_empty_collection(services: Services) -> None:
    services.gallery.create_collection("empty", {})
    found = find_gallery_issues(services.gallery, services.calibrations, "empty", lambda *_: None)
    assert (found.faces, found.duplicates, found.weak) == (0, (), ())


def look_alikes(services: Services, name: str) -> np.ndarray:
    """Two persons who resemble one another as one person's faces do, and a second id of one."""
    services.gallery.create_collection(name, {})
    centres = unit(np.random.default_rng(3).normal(size=(2, services.pack.recogniser.dimension)))
    random = np.random.default_rng(4)
    people = {"ada": (1.0, 0.6), "twin": (0.6, 1.0), "ada again": (1.0, 0.3)}
    for person, (first, second) in people.items():
        centre = first * centres[0] + second * centres[1]
        faces = unit(centre / np.linalg.norm(centre) + 0.03 * random.normal(size=(4, len(centre))))
        made = [NewTemplate(one, f"{person}-{i}", asdict(GOOD)) for i, one in enumerate(faces)]
        enroll_person(services.gallery, name, person, None, made)
    return centres


def pairs_of(found: Any) -> set[frozenset[str]]:
    return {frozenset((one.person_id_a, one.person_id_b)) for one in found.duplicates}


def test_a_declared_pair_is_never_listed_again_and_hides_nobody(services: Services) -> None:
    look_alikes(services, "twins")
    gallery, nothing = services.gallery, lambda *_: None
    found = find_gallery_issues(gallery, services.calibrations, "twins", nothing)
    assert frozenset(("ada", "twin")) in pairs_of(found)
    gallery.store.pairs.declare("twins", "twin", "ada")
    gallery.store.pairs.declare("twins", "twin", "ada again")
    found = find_gallery_issues(gallery, services.calibrations, "twins", nothing)
    # Ada's second id is found all the same, and nobody else.
    assert pairs_of(found) == {frozenset(("ada", "ada again"))}
    gallery.store.pairs.declare("twins", "ada again", "ada")
    found = find_gallery_issues(gallery, services.calibrations, "twins", nothing)
    assert (found.duplicates, found.counts["duplicates"]) == ((), 0)
    gallery.store.pairs.withdraw("twins", "twin", "ada")
    found = find_gallery_issues(gallery, services.calibrations, "twins", nothing)
    assert pairs_of(found) == {frozenset(("ada", "twin"))}


def test_a_face_like_the_declared_other_is_no_mislabel(services: Services) -> None:
    centres = look_alikes(services, "mislabels")
    gallery, nothing = services.gallery, lambda *_: None
    delete_person(gallery, "mislabels", "ada again")
    enroll_person(
        gallery,
        "mislabels",
        "ada",
        None,
        [NewTemplate(unit(-0.4 * centres[0] + centres[1]), "odd")],
    )
    before = find_gallery_issues(gallery, services.calibrations, "mislabels", nothing).mislabels
    assert [(one.person_id, one.looks_like) for one in before] == [("ada", "twin")]
    gallery.store.pairs.declare("mislabels", "ada", "twin")
    assert find_gallery_issues(gallery, services.calibrations, "mislabels", nothing).mislabels == ()
