"""A collection attests to itself: a real database, made-up people."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.decision.calibrations import Calibrations
from app.gallery.gallery import Gallery
from app.index.comparator import COSINE, Comparator
from app.index.person_scores import PersonScore
from app.inference.packs import load_pack
from app.lab.attestation import cells, collection
from app.lab.attestation.cells import count_cells
from app.lab.attestation.collection import measure_collection
from app.lab.attestation.document import AttestationError
from app.lab.attestation.requirement import NAMED, Requirement
from app.lab.attestation.run import Wanted, attest_collection
from app.store.records import NewTemplate
from tests.decision.conftest import people
from tests.decision.test_calibration import calibration
from tests.decision.test_calibrations import DIMENSION, fill, open_gallery
from tests.writing import delete_person, enroll_person

LOWERING = Comparator(np.eye(DIMENSION, dtype=np.float32)[0], 1.5)


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    opened = open_gallery(tmp_path / "likeness.db")
    yield opened
    opened.store.close()


def test_each_person_is_a_stranger_to_the_rest(gallery: Gallery) -> None:
    fill(gallery, 60)
    record = gallery.require("default")
    found = measure_collection(gallery, record, COSINE, named=True)
    assert (found.persons, found.templates) == (60, 120)
    assert found.searched.gallery_persons == 59
    data = people(60, 2, dimension=DIMENSION, noise=0.3)
    scores = data.vectors @ data.vectors.T
    first = np.arange(0, 120, 2)
    others = np.where(data.persons[first][:, None] == data.persons, -2, scores[first]).max(axis=1)
    threshold = float(np.quantile(others, 0.9))
    groups = {"half": {f"p{n}": "low" if n < 30 else "high" for n in range(60)}}
    everybody, high, low = count_cells(found.searched, threshold, groups)
    assert (everybody.group, high.group, low.group) == ("everybody", "half=high", "half=low")
    assert everybody.fpir.errors == int((others >= threshold).sum())
    assert everybody.fpir.searches == 60
    assert everybody.fpir.effective <= 30
    assert low.fpir.errors == int((others[:30] >= threshold).sum())
    assert everybody.fnir.searches == 60
    missed = (scores[first, first + 1] < threshold) | (scores[first, first + 1] < others)
    assert everybody.fnir.errors == int(missed.sum())


def test_the_same_templates_have_the_same_digest(gallery: Gallery, tmp_path: Path) -> None:
    fill(gallery, 5)
    one = measure_collection(gallery, gallery.require("default"), COSINE, named=False)
    other = open_gallery(tmp_path / "other.db")
    for person in range(4, -1, -1):  # other ids, other order, other keys
        _, vectors = gallery.store.embeddings.of_person("default", f"p{person}")
        templates = [NewTemplate(v, f"x{i}") for i, v in enumerate(vectors)][::-1]
        enroll_person(other, "default", f"q{person}", None, templates)
    again = measure_collection(other, other.require("default"), COSINE, named=False)
    assert again.sha256 == one.sha256
    delete_person(other, "default", "q3")
    less = measure_collection(other, other.require("default"), COSINE, named=False)
    assert less.sha256 != one.sha256
    other.store.close()


def test_one_person_says_nothing(gallery: Gallery) -> None:
    fill(gallery, 1)
    found = measure_collection(gallery, gallery.require("default"), COSINE, named=True)
    (cell,) = count_cells(found.searched, 0.5, {})
    assert (cell.gallery_persons, cell.fpir.errors) == (0, 0)


@pytest.mark.parametrize(("persons", "enough"), [(None, True), (8, True), (9, False)])
def test_a_whole_collection_is_the_gallery_of_a_requirement(
    gallery: Gallery, persons: int | None, *, enough: bool
) -> None:
    """Each search leaves its own person out; that makes no collection too small for itself."""
    fill(gallery, 8)
    wanted = Wanted(Requirement(name="all", fpir=0.99, gallery_share=1, by_group=False), persons)
    calibrations = Calibrations(
        gallery.store.calibrations, None, 0.5, embedding_space="es-test", precision="float32"
    )
    made = attest_collection("default", wanted, load_pack("default"), gallery, calibrations)
    (row,) = made["cells"]
    assert (row["gallery_persons"], row["gallery_large_enough"]) == (7, enough)
    if enough:
        assert (made["outcome"], made["undecided_because"]) == ("pass", [])
    else:
        assert made["outcome"] == "undecided"
        assert made["undecided_because"] == [
            "The gallery has 8 persons, and the requirement asks for 9 at least."
        ]


def test_nobody_is_an_error(gallery: Gallery) -> None:
    with pytest.raises(AttestationError, match="has no templates"):
        measure_collection(gallery, gallery.require("default"), COSINE, named=False)


def test_a_collection_that_changes_meanwhile(gallery: Gallery) -> None:
    fill(gallery, 3)
    before = gallery.require("default")
    delete_person(gallery, "default", "p1")
    with pytest.raises(AttestationError, match="changed while it was measured"):
        measure_collection(gallery, before, COSINE, named=False)


def test_of_many_people_some_are_searched_for_among_all(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(gallery, 40)
    monkeypatch.setattr(collection, "MAX_PROBES", 10)
    record = gallery.require("default")
    one, other = (measure_collection(gallery, record, COSINE, named=True) for _ in range(2))
    assert one.searched.gallery_persons == 39
    assert len(one.searched.stranger_names) == 10
    assert one.searched.stranger_names == other.searched.stranger_names


@pytest.mark.parametrize("score", PersonScore)
def test_persons_are_compared_by_the_score_of_the_collection(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, score: PersonScore
) -> None:
    """The probe's own template counts neither as one of its person's nor in their centroid."""
    fill(gallery, 30)
    monkeypatch.setattr(cells, "BLOCK_PERSONS", 7)
    monkeypatch.setattr(cells, "BLOCK_ROWS", 11)
    _, more = gallery.store.embeddings.of_person("default", "p4")
    enroll_person(
        gallery, "default", "p9", None, [NewTemplate(more[0], "copy")]
    )  # a third template
    vectors = {n: gallery.store.embeddings.of_person("default", f"p{n}")[1] for n in range(30)}
    record = gallery.require("default")
    found = measure_collection(gallery, record, LOWERING, score, named=True).searched.strangers
    order = [int(name[1:]) for name in measured_names(gallery)]
    for place, person in enumerate(order):
        probe = found.probes.vectors[place]
        scores = {
            n: score.of_templates(LOWERING.scores(probe[np.newaxis], held)[0], held)
            for n, held in vectors.items()
            if n != person
        }
        assert found.other[place] == pytest.approx(max(scores.values()), abs=1e-6)
        rest = vectors[person][~(vectors[person] == probe).all(axis=1)]
        own = score.of_templates(LOWERING.scores(probe[np.newaxis], rest)[0], rest)
        assert found.own[place] == pytest.approx(own, abs=1e-6)


def measured_names(gallery: Gallery) -> list[str]:
    record = gallery.require("default")
    return list(measure_collection(gallery, record, COSINE, named=True).searched.stranger_names)


@pytest.mark.parametrize("score", ["best", "centroid", "fused"])
def test_a_collection_is_measured_by_its_own_score(gallery: Gallery, score: str) -> None:
    """The threshold is the score's own; centroids of two good templates are nearer to a third."""
    fill(gallery, 40)
    shipped = calibration(score_exponents={"centroid": 0.2, "fused": 0.4})
    calibrations = Calibrations(
        gallery.store.calibrations, shipped, 0.5, embedding_space="es-test", precision="float32"
    )
    gallery.store.collections.update("default", None, {"score": score})
    wanted = Wanted(next(iter(NAMED.values())))
    made = attest_collection("default", wanted, load_pack("default"), gallery, calibrations)
    assert made["policy"]["score"] == score
    assert made["threshold"]["score"] == score
    sizes = gallery.size("default").scored_by(PersonScore(score))
    assert made["threshold"]["value"] == pytest.approx(shipped.threshold_at(0.01, sizes), abs=1e-4)
