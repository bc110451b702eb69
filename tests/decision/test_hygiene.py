"""Galleries with known mistakes: each is found as what it is, and nothing else is."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest

from app.decision.hygiene import examine
from app.gallery.ports import NewTemplate
from app.services import Services, build_services
from app.settings import Settings
from app.types import FloatArray, Quality

PEOPLE, FACES = 60, 4
GOOD = Quality(100, 0, 0, 0, 300, 0.5, 0.9, 80.0)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    services = build_services(Settings(data_dir=tmp_path_factory.mktemp("hygiene")))
    yield services
    services.close()


def unit(vectors: np.ndarray) -> FloatArray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


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
        services.gallery.enroll("default", person_id, None, made)

    for person in range(PEOPLE):
        enroll(f"p{person}", faces(person))
    enroll("p0-again", faces(0))
    enroll("p1", faces(2, 1))  # a face of p2 under p1
    enroll("p3", unit(random.normal(size=(1, dimension))))
    enroll("blurred", unit(random.normal(size=(1, dimension))), Quality(100, 0, 0, 0, 2, 0.5, 0.9))
    seen: list[tuple[int, int]] = []
    found = examine(
        services.gallery, services.calibrations, "default", lambda *step: seen.append(step)
    )
    assert seen[-1] == (found.faces, found.faces)
    assert (found.persons, found.faces) == (PEOPLE + 2, PEOPLE * FACES + FACES + 3)
    return asdict(found)


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


def test_mending_takes_the_finding_away(
    services: Services, findings: dict[str, list[dict[str, object]]]
) -> None:
    (wrong,) = findings["mislabels"]
    services.gallery.move_face("default", wrong["face_id"], wrong["looks_like"])
    services.gallery.merge_persons("default", "p0-again", "p0")
    found = examine(services.gallery, services.calibrations, "default", lambda *_: None)
    assert found.duplicates == found.mislabels == ()


def test_an_empty_collection(services: Services) -> None:
    services.gallery.create_collection("empty", {})
    found = examine(services.gallery, services.calibrations, "empty", lambda *_: None)
    assert (found.faces, found.duplicates, found.weak) == (0, (), ())
