"""Fitting the limits for turned photos, on real portraits."""

from pathlib import Path

import numpy as np
import pytest

from app.decision.policy import FaceSelection
from app.faces.pipeline import FacePipeline
from app.inference.pack_spec import ModelPack
from app.lab.evaluation import sections
from app.lab.evaluation.protocol import Analyser, EnrolledPhotos, enrol_photos
from app.lab.evaluation.sections import LabelledFolder, fit_orientation

NAMES = ("obama.jpg", "obama2.jpg", "biden.jpg")


@pytest.fixture
def analyser(pipeline: FacePipeline) -> Analyser:
    return Analyser(pipeline)


@pytest.fixture
def source(analyser: Analyser, labelled_folder: Path) -> LabelledFolder:
    folder = labelled_folder / "images"
    photos = enrol_photos(analyser, folder, NAMES)
    return LabelledFolder(folder, "portraits", photos, FaceSelection.CENTRE)


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
