"""Open-set identification and the promises of calibrations, on the people of LFW's pairs."""

from pathlib import Path

import numpy as np
import pytest

from app.decision.fitting import Labelled, calibrate
from app.decision.gallery_issues import ChancePairs
from app.decision.thresholds import ONE_COMPARISON
from app.index.comparator import COSINE, Comparator
from app.index.person_scores import effective_templates
from app.lab.evaluation.identification import identify
from app.lab.evaluation.labels import LabelledPeople, read_label_noise
from app.lab.evaluation.prediction import check_predictions
from app.lab.evaluation.protocol import EnrolledPhotos
from app.lab.evaluation.sample import FaceSample, build_sample

pytestmark = pytest.mark.accuracy

NOISE = Path(__file__).resolve().parents[2] / "benchmarks" / "lfw_label_noise.csv"


def sample_of(photos: EnrolledPhotos, comparator: Comparator = COSINE) -> FaceSample:
    images = tuple(sorted(photos.faces))
    people = LabelledPeople(Path(), images, tuple(image.split("/")[0] for image in images))
    return build_sample(people, photos, read_label_noise(NOISE), comparator)


@pytest.fixture(scope="session")
def default_sample(default_photos: EnrolledPhotos) -> FaceSample:
    return sample_of(default_photos)


@pytest.fixture(scope="session")
def scrfd_sample(scrfd_photos: EnrolledPhotos) -> FaceSample:
    return sample_of(scrfd_photos)


def found_at_one_percent(sample: FaceSample) -> tuple[float, float]:
    """Rank-1 rate and FNIR at FPIR 1 %, everyone with two photos enrolled with one."""
    everyone = identify(sample, np.random.default_rng(0), sizes=())[-1]
    point = next(point for point in everyone.points if point.target_fpir == 0.01)
    return everyone.rank_one.value, point.fnir.value


def test_default_pack(default_sample: FaceSample) -> None:
    """Measured: 0.9837 and 0.0846."""
    rank_one, fnir = found_at_one_percent(default_sample)
    assert rank_one >= 0.978
    assert fnir <= 0.095


def test_version_1(version_1_photos: EnrolledPhotos, default_sample: FaceSample) -> None:
    """Measured: 0.9807 and 0.0870. With this one choice of the enrolled photo the difference to
    version 2 is small; benchmarks/landmarks.py takes the mean of twenty."""
    rank_one, fnir = found_at_one_percent(sample_of(version_1_photos))
    now_rank_one, now_fnir = found_at_one_percent(default_sample)
    assert rank_one >= 0.975
    assert fnir <= 0.11
    assert now_rank_one >= rank_one - 0.002
    assert now_fnir <= fnir + 0.003


def test_scrfd_with_w600k_mbf(scrfd_sample: FaceSample) -> None:
    rank_one, fnir = found_at_one_percent(scrfd_sample)
    assert rank_one >= 0.99
    assert fnir <= 0.03


@pytest.mark.parametrize("name", ["default_sample", "scrfd_sample"])
def test_promises_hold_for_people_held_out(name: str, request: pytest.FixtureRequest) -> None:
    """Nine tenths of them and more lie within the 95 % interval of the simulation."""
    sample = request.getfixturevalue(name)
    labelled = Labelled(sample.data, "photos", "lfw", sample.left_out)
    own = calibrate(labelled, "es-test", "float32")
    found = check_predictions(sample, own, np.random.default_rng(0))
    held_out = [one for one in found if one.held_out]
    assert len(held_out) >= 6
    assert np.mean([one.kept for one in held_out]) >= 0.85


def test_as_many_pairs_look_alike_by_chance_as_expected(default_sample: FaceSample) -> None:
    """Of people with any number of photos; the known mistakes of the labels are left out."""
    mistaken = np.array(sorted({person for pair in default_sample.left_out for person in pair}))
    data = default_sample.data
    data = data.of_persons(np.setdiff1d(np.arange(data.person_count), mistaken))
    own = calibrate(Labelled(data, "photos", "lfw"), "es-test", "float32")
    starts = np.searchsorted(data.persons, np.arange(data.person_count))
    rows = np.maximum.reduceat(data.vectors @ data.vectors.T, starts, axis=0)
    nearest = np.maximum.reduceat(rows, starts, axis=1)[np.triu_indices(data.person_count, 1)]
    persons = np.split(data.vectors, starts[1:])
    stated = ChancePairs.of(own, np.array([effective_templates(vectors) for vectors in persons]))
    for fmr in (1e-3, 1e-4, 1e-5):
        similarity = own.threshold_at(fmr, ONE_COMPARISON)
        expected = stated.at(similarity)
        assert expected is not None
        found = int((nearest >= similarity).sum())
        assert abs(found - expected) <= 2 * np.sqrt(expected) + 0.3 * expected
        assert expected > 2 * fmr * len(nearest), "several photos per person count"
