"""The promises of the default pack's calibration outside mixed press photos: faces degraded on both
sides, and galleries of one group. docs/benchmarks/accuracy.md has all strata, of the people held
out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.decision.calibration import Calibration
from app.decision.calibrations import pack_calibration
from app.decision.comparisons import rates_at
from app.decision.domain import Limits
from app.decision.face_selection import FaceSelection
from app.decision.thresholds import ONE_COMPARISON
from app.index.comparator import COSINE, Comparator
from app.index.likeness import QUANTILE
from app.index.port import GallerySize
from app.lab.evaluation.degrading import DEGRADATIONS, embed_covered, embed_degraded
from app.lab.evaluation.identification import search, split
from app.lab.evaluation.labels import read_attributes
from app.lab.evaluation.protocol import Analyser, EnrolledPhotos
from app.lab.evaluation.sample import FaceSample
from app.types import FloatArray
from tests.accuracy.conftest import RunningPack
from tests.accuracy.test_lfw_identification import sample_of

pytestmark = pytest.mark.accuracy

PEOPLE = 200


@pytest.fixture(scope="module")
def shipped(default_pack: RunningPack) -> Calibration:
    pack = default_pack.pack
    found = pack_calibration(pack.folder, pack.embedding_space, "float32")
    assert found is not None
    assert found.domain is not None
    return found


@pytest.fixture(scope="module")
def degraded(
    default_pack: RunningPack, default_photos: EnrolledPhotos, evaluation_data: Path
) -> dict[str, FloatArray]:
    """One face each of so many people, by how it was degraded."""
    first = {name.split("/")[0]: name for name in sorted(default_photos.faces, reverse=True)}
    names = list(first.values())[:PEOPLE]
    folder = evaluation_data / "lfw" / "images"
    return embed_degraded(Analyser(default_pack.pipeline), folder, names, FaceSelection.CENTRE)


def fmr(faces: FloatArray, comparator: Comparator, threshold: float) -> float:
    pairs = np.triu_indices(len(faces), 1)
    return float((comparator.scores(faces, faces)[pairs] >= threshold).mean())


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_strangers_whose_photos_are_both_bad_are_not_confused(
    shipped: Calibration, degraded: dict[str, FloatArray], kind: str
) -> None:
    """Measured at the threshold for 1e-4: 0.96, 0.57 and 0.70 by the cosine, 1e-3 and less by the
    score."""
    threshold = shipped.threshold_at(1e-4, ONE_COMPARISON)
    assert fmr(degraded[kind], COSINE, threshold) > 0.4
    assert fmr(degraded[kind], shipped.comparator, threshold) < 3e-3


def test_strangers_whose_faces_are_both_covered_are_not_confused(
    shipped: Calibration,
    default_pack: RunningPack,
    default_photos: EnrolledPhotos,
    evaluation_data: Path,
) -> None:
    """Measured on people held out, at the threshold for 1e-4: 1.9e-3 by the cosine, 5e-5 by the
    score."""
    first = {name.split("/")[0]: name for name in sorted(default_photos.faces, reverse=True)}
    names = list(first.values())[-2 * PEOPLE :]
    folder = evaluation_data / "lfw" / "images"
    analyser = Analyser(default_pack.pipeline)
    plain, covered = embed_covered(analyser, folder, names, FaceSelection.CENTRE)
    threshold = shipped.threshold_at(1e-4, ONE_COMPARISON)
    assert fmr(covered[:, 0], COSINE, threshold) > 5e-4
    assert fmr(covered[:, 0], shipped.comparator, threshold) < 2e-4
    seen = [shipped.comparator.coverings(faces) for faces in (plain, covered[:, 0])]
    assert np.mean(seen[0] == 1) < 0.02
    assert np.mean(seen[1] == 1) > 0.7


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_nearly_none_of_them_is_decided(
    shipped: Calibration, degraded: dict[str, FloatArray], kind: str
) -> None:
    assert shipped.domain is not None
    limit = shipped.domain.limits.max_degradation
    leans = shipped.comparator.degradation(degraded[kind])
    assert leans is not None
    assert limit is not None
    assert np.mean(leans > limit) > 0.9


def test_press_photos_pay_little(shipped: Calibration, default_photos: EnrolledPhotos) -> None:
    """Measured of people held out: 0.008 % of the mated and 0.002 % of the other comparisons."""
    sample = sample_of(default_photos)
    assert shipped.domain is not None
    refused = beyond(shipped.domain.limits, shipped.comparator, sample)
    same = sample.data.persons[:, np.newaxis] == sample.data.persons
    np.fill_diagonal(same, val=False)
    different = sample.data.persons[:, np.newaxis] != sample.data.persons
    assert refused[same].mean() < 0.005
    assert refused[different].mean() < 0.005
    missed = shipped.fnmr_at(shipped.threshold_at(1e-4, ONE_COMPARISON))
    assert missed is not None
    assert missed.value < 0.05  # measured: 4.0 %


def beyond(limits: Limits, comparator: Comparator, sample: FaceSample) -> np.ndarray:
    """Whether a comparison of two faces is outside the limits (n, n)."""
    leans = comparator.degradation(sample.data.vectors)
    assert leans is not None
    codes = [
        limits.beyond(quality, float(lean))
        for quality, lean in zip(sample.qualities, leans, strict=True)
    ]
    both = np.zeros((len(codes), len(codes)), np.bool_)
    for code in ("degraded", "blurred", "too_dark", "face_too_small"):
        mine = np.array([code in one for one in codes])
        both |= np.outer(mine, mine)
    return both


@pytest.fixture(scope="module")
def women(
    shipped: Calibration, default_photos: EnrolledPhotos, evaluation_data: Path
) -> FaceSample:
    sex = read_attributes(evaluation_data / "lfw" / "groups.csv")["sex"]
    names = {image for image in default_photos.faces if sex.get(image.split("/")[0]) == "female"}
    return sample_of(
        EnrolledPhotos({n: default_photos.faces[n] for n in names}, (), default_photos.digests),
        shipped.comparator,
    )


def test_two_women_match_no_more_often_than_promised(
    shipped: Calibration, women: FaceSample
) -> None:
    """Measured where an FMR of 1e-3 is promised: 2.5e-3 without the lift of the two faces, 0.9e-3
    with it."""
    assert shipped.domain is not None
    lifted = shipped.domain.verification.lifted(shipped.comparator)
    threshold = np.array([shipped.threshold_at(1e-3, ONE_COMPARISON)])
    found = [
        float(rates_at(replace(women.data, comparator=one), threshold).rates[0])
        for one in (shipped.comparator, lifted)
    ]
    assert found[0] > 2e-3
    assert found[1] < 1.2e-3


def test_a_gallery_of_women_keeps_the_promise(shipped: Calibration, women: FaceSample) -> None:
    """Measured at a promised FPIR of 10 %, of people held out: 25 % without the lift, 11 % with."""
    sample = women
    enrolled, strangers = split(sample)
    assert len(enrolled) > 100
    assert len(strangers) > 100
    found = search(sample, enrolled, strangers)
    size = GallerySize(len(enrolled), len(enrolled))
    threshold = shipped.threshold_at(0.1, size)
    first = np.searchsorted(sample.data.persons, enrolled)
    likeness = float(np.quantile(sample.data.mated(first), QUANTILE))
    assert shipped.domain is not None
    lift = shipped.domain.lift_of(likeness, size)
    assert np.mean(found.strangers >= threshold) > 0.16
    assert np.mean(found.strangers >= threshold + lift) < 0.14
