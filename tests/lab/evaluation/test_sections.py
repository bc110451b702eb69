"""Fitting the lifts of a verification, and the limits for turned photos on real portraits."""

from pathlib import Path

import numpy as np
import pytest

from app.decision.calibrations import read_calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.face_selection import FaceSelection
from app.faces.pipeline import FacePipeline
from app.inference.pack_spec import ModelPack
from app.lab.evaluation import sections
from app.lab.evaluation.protocol import Analyser, EnrolledPhotos, enrol_photos
from app.lab.evaluation.sample import FaceSample
from app.lab.evaluation.sections import LabelledFolder, fit_orientation, with_lifts

NAMES = ("obama.jpg", "obama2.jpg", "biden.jpg")


@pytest.fixture
def analyser(pipeline: FacePipeline) -> Analyser:
    return Analyser(pipeline)


@pytest.fixture
def source(analyser: Analyser, labelled_folder: Path) -> LabelledFolder:
    folder = labelled_folder / "images"
    photos = enrol_photos(analyser, folder, NAMES)
    return LabelledFolder(folder, "portraits", photos, FaceSelection.CENTRE)


@pytest.mark.slow
def test_limits_are_fitted_to_upright_photos_and_tried_on_turned_ones(
    source: LabelledFolder, analyser: Analyser, pack: ModelPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "TRIED", 2)
    ticks: list[None] = []
    generator = np.random.default_rng(0)
    fitted = fit_orientation(source, pack, analyser, generator, lambda: ticks.append(None))
    assert fitted is not None
    lowest = min(face.score for face in source.photos.faces.values())
    assert lowest - 0.02 < fitted.score_below <= lowest
    assert (fitted.photos, fitted.looked_again, len(ticks)) == (3, 0.0, 2)
    assert (fitted.turned, fitted.righted) == (6, 1.0)
    assert fitted.limits_for(pack) is not None


def test_limits_that_set_nothing_upright_are_not_kept(
    source: LabelledFolder, analyser: Analyser, pack: ModelPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "TRIED", 1)
    monkeypatch.setattr(sections, "LEAST_RIGHTED", 1.1)
    assert fit_orientation(source, pack, analyser, np.random.default_rng(0)) is None


def test_without_faces_there_are_none(
    source: LabelledFolder, analyser: Analyser, pack: ModelPack
) -> None:
    nobody = LabelledFolder(source.folder, "nobody", EnrolledPhotos({}, (), {}), source.selection)
    assert fit_orientation(nobody, pack, analyser, np.random.default_rng(0)) is None


def test_lifts_are_added_to_a_calibration_of_people_whose_groups_are_known(
    pack: ModelPack,
) -> None:
    calibration = read_calibration(pack.folder / "calibration.json")
    assert calibration.domain is not None
    names = tuple(f"person{i:03}" for i in range(400))
    vectors = np.random.default_rng(1).normal(size=(400, pack.recogniser.dimension))
    vectors[::2, 0] += 9  # the people of one group are more alike
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    data = LabelledEmbeddings(
        vectors.astype(np.float32), np.arange(400, dtype=np.intp), calibration.comparator
    )
    sample = FaceSample(data, names, names, (), frozenset())
    groups = {"sex": {name: "fm"[i % 2] for i, name in enumerate(names)}}
    degraded = calibration.domain.verification.degraded
    found = with_lifts(calibration, degraded, sample, groups)
    assert found.domain is not None
    assert found.domain.verification.degraded == degraded
    assert found.domain.verification.typical is not None
    assert found.domain.verification.typical.groups == (200, 200)
    assert found.calibration_id != calibration.calibration_id
