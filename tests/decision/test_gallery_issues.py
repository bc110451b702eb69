"""One person under two ids stands out, and strangers don't."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from app.decision import gallery_issues
from app.decision.calibration import Calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.fitting import Labelled, calibrate
from app.decision.gallery_issues import ChancePairs, suspected_duplicates
from app.decision.rates import Floats
from app.decision.thresholds import ONE_COMPARISON
from app.errors import NotEnoughData
from app.index.person_scores import effective_templates
from tests.decision.conftest import people


def with_second_ids(data: LabelledEmbeddings, count: int) -> LabelledEmbeddings:
    """The second faces of the first `count` people get ids of their own, at the end."""
    persons = data.persons.copy()
    for person in range(count):
        persons[np.flatnonzero(data.persons == person)[1]] = data.person_count + person
    return LabelledEmbeddings.of(data.vectors, persons)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_all_second_ids_are_found_and_nobody_else(count: int) -> None:
    data = with_second_ids(people(400, 2, dimension=128, noise=0.4), count)
    suspects = suspected_duplicates(data)
    found = {(pair.person_a, pair.person_b) for pair in suspects}
    assert found == {(person, 400 + person) for person in range(count)}
    similarities = [pair.similarity for pair in suspects]
    assert similarities == sorted(similarities, reverse=True)


@pytest.mark.parametrize("count", [200, 500])
def test_many_second_ids_do_not_hide_one_another(count: int) -> None:
    data = with_second_ids(people(1000, 2, dimension=128, noise=0.4), count)
    found = {(pair.person_a, pair.person_b) for pair in suspected_duplicates(data)}
    assert found == {(person, 1000 + person) for person in range(count)}


def test_one_photo_under_many_ids_is_suspected() -> None:
    """More pairs than are examined otherwise, all with one similarity."""
    data = people(300, dimension=128)
    data.vectors[:50] = data.vectors[0]
    found = {(pair.person_a, pair.person_b) for pair in suspected_duplicates(data)}
    assert found == set(combinations(range(50), 2))


def under_ids(photos: Sequence[int]) -> LabelledEmbeddings:
    """An id for each of these photos, which have numbers."""
    return LabelledEmbeddings.of(people(300).vectors[list(photos)], np.arange(len(photos)))


@pytest.mark.parametrize(
    "photos",
    [[0] * 100, [*range(10)] * 10, [*range(20)] * 50, [0] * 50 + [*range(150)]],
    ids=["one", "ten", "twenty", "too many pairs"],
)
def test_a_few_photos_under_many_ids_are_no_people(photos: list[int]) -> None:
    with pytest.raises(NotEnoughData, match=f"Of {len(photos)} people so many have the same photo"):
        suspected_duplicates(under_ids(photos))


def test_pairs_are_suspected_until_none_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are looked at beyond the last in one round."""
    monkeypatch.setattr(gallery_issues, "_gross", lambda _: 0)
    data = with_second_ids(people(400, 2, dimension=128, noise=0.4), 12)
    assert len(suspected_duplicates(data)) == 12


@pytest.mark.parametrize("seed", range(5))
def test_strangers_are_not_suspected(seed: int) -> None:
    assert suspected_duplicates(people(400, dimension=128, seed=seed)) == []


def test_a_small_gallery_of_strangers() -> None:
    assert suspected_duplicates(people(100, dimension=128)) == []


DIMENSION = 48


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    data = people(900, [1, 1, 2] * 300, dimension=DIMENSION)
    return calibrate(Labelled(data, "photos", "made up"), "es-test", "float32")


def threshold(calibration: Calibration, fmr: float) -> float:
    return calibration.threshold_at(fmr, ONE_COMPARISON)


def nearest(data: LabelledEmbeddings) -> Floats:
    """The similarity of the most similar templates of each pair of people."""
    starts = np.searchsorted(data.persons, np.arange(data.person_count))
    rows = np.maximum.reduceat(data.vectors @ data.vectors.T, starts, axis=0)
    between = np.maximum.reduceat(rows, starts, axis=1)
    return np.asarray(between[np.triu_indices(data.person_count, 1)])


def effective(data: LabelledEmbeddings) -> Floats:
    persons = np.split(data.vectors, np.cumsum(data.counts)[:-1])
    return np.array([effective_templates(vectors) for vectors in persons])


@pytest.mark.parametrize("held", [1, 2, 8, [1, 1, 2, 4, 16]], ids=["one", "two", "eight", "mixed"])
def test_as_many_pairs_as_are_stated_look_alike(
    calibration: Calibration, held: int | list[int]
) -> None:
    counts = held if isinstance(held, int) else held * 100
    others = people(500, counts, dimension=DIMENSION, seed=9)
    found, stated = nearest(others), ChancePairs.of(calibration, effective(others))
    for fmr in (1e-3, 1e-4):
        similarity = threshold(calibration, fmr)
        expected = stated.at(similarity)
        count = int((found >= similarity).sum())
        assert expected is not None
        # Twice the standard deviation of a count, and what the power of templates is worth.
        assert abs(count - expected) <= 2 * np.sqrt(expected) + 0.4 * expected
        if held == 8:
            assert count > 15 * fmr * len(found), "one comparison a pair is far too few"


def test_people_with_one_template_are_one_comparison_a_pair(calibration: Calibration) -> None:
    stated = ChancePairs.of(calibration, np.ones(200))
    for fmr in (1e-3, 1e-5):
        expected = stated.at(threshold(calibration, fmr))
        assert expected == pytest.approx(fmr * 200 * 199 / 2, rel=0.02)


def test_there_are_never_more_pairs_than_people_make(calibration: Calibration) -> None:
    stated = ChancePairs.of(calibration, np.array([20_000.0, 30_000.0, 1.0, 1.0]))
    assert stated.people == 6
    expected = stated.at(threshold(calibration, 1e-2))
    assert expected is not None
    assert 4.9 < expected <= 6
    assert stated.at(-1.0) == 6


def test_beyond_the_calibration_only_the_most_is_known(calibration: Calibration) -> None:
    stated = ChancePairs.of(calibration, np.full(100, 3.0))
    end = calibration.fmr.similarity[-1]
    assert stated.at(end + 1e-6) is None
    assert stated.at_most(0.999) == stated.at(end)


@pytest.mark.parametrize("counts", [[], [0], [5], [0, 7, 0]])
def test_one_person_makes_no_pair(calibration: Calibration, counts: list[int]) -> None:
    stated = ChancePairs.of(calibration, np.array(counts, np.float64))
    for similarity in (-1.0, 0.0, 0.5):
        assert stated.at_most(similarity) == 0
