"""A collection attests to itself: a real database, made-up people."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.decision.calibrations import Calibrations
from app.gallery.gallery import Gallery
from app.index.comparator import COSINE
from app.lab.attestation import collection
from app.lab.attestation.cells import count_cells
from app.lab.attestation.collection import measure_collection
from app.lab.attestation.requirement import NAMED
from app.lab.attestation.run import Wanted, attest_collection
from app.lab.errors import AttestationError
from app.store.records import NewTemplate
from tests.decision.conftest import people
from tests.decision.test_calibration import calibration
from tests.decision.test_collection_calibration import DIMENSION, fill, open_gallery


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
        other.enroll("default", f"q{person}", None, templates)
    again = measure_collection(other, other.require("default"), COSINE, named=False)
    assert again.sha256 == one.sha256
    other.delete_person("default", "q3")
    less = measure_collection(other, other.require("default"), COSINE, named=False)
    assert less.sha256 != one.sha256
    other.store.close()


def test_one_person_says_nothing(gallery: Gallery) -> None:
    fill(gallery, 1)
    found = measure_collection(gallery, gallery.require("default"), COSINE, named=True)
    (cell,) = count_cells(found.searched, 0.5, {})
    assert (cell.gallery_persons, cell.fpir.errors) == (0, 0)


def test_nobody_is_an_error(gallery: Gallery) -> None:
    with pytest.raises(AttestationError, match="has no templates"):
        measure_collection(gallery, gallery.require("default"), COSINE, named=False)


def test_a_collection_that_changes_meanwhile(gallery: Gallery) -> None:
    fill(gallery, 3)
    before = gallery.require("default")
    gallery.delete_person("default", "p1")
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


def test_a_collection_with_another_score_is_not_measured_by_the_best_template(
    gallery: Gallery,
) -> None:
    fill(gallery, 3)
    shipped = calibration(score_exponents={"centroid": 0.2, "fused": 0.4})
    calibrations = Calibrations(
        gallery.store.calibrations, shipped, 0.5, embedding_space="es-test", precision="float32"
    )
    gallery.store.collections.update("default", None, {"score": "fused"})
    with pytest.raises(AttestationError, match="score=fused; a collection can only be measured"):
        attest_collection(
            "default", Wanted(next(iter(NAMED.values()))), None, gallery, calibrations
        )
