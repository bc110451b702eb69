"""Calibrations of made-up people: what they promise is what those people do."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from app.decision.calibration import Calibration
from app.decision.comparisons import LabelledEmbeddings, compare_non_mated, rates_at
from app.decision.fitting import Labelled, Tail, calibrate, fit_tail, template_exponents
from app.decision.rates import clopper_pearson
from app.decision.thresholds import ONE_COMPARISON
from app.errors import NotEnoughData
from app.index.person_scores import PersonScore
from app.index.port import GallerySize
from tests.decision.conftest import people

DIMENSION = 48


def fitted(count: int = 600, seed: int = 0, **options: object) -> Calibration:
    data = people(count, [1, 1, 2] * (count // 3), dimension=DIMENSION, seed=seed)
    clock = lambda: datetime(2026, 11, 24, tzinfo=UTC)  # noqa: E731
    return calibrate(Labelled(data, "photos", "made up"), "es-test", "float32", clock)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fitted()


def test_a_threshold_keeps_its_rate_on_other_people(calibration: Calibration) -> None:
    others = people(1500, dimension=DIMENSION, seed=99)
    for target in (1e-2, 1e-3, 1e-4):
        threshold = calibration.threshold_at(target, ONE_COMPARISON)
        stated = calibration.fmr_at(threshold)
        assert stated is not None
        assert stated.value == pytest.approx(target, rel=0.02)
        found = float(rates_at(others, np.array([threshold])).rates[0])
        assert stated.low * 0.9 <= found <= stated.high * 1.1


def test_the_tail_holds_the_rates_beyond_the_data(calibration: Calibration) -> None:
    """Twenty times as many comparisons say what a tail of the first could only guess."""
    target = 0.3 / (600 * 599 / 2)
    assert calibration.lowest_fmr < target
    threshold = calibration.threshold_at(target, ONE_COMPARISON)
    stated = calibration.fmr_at(threshold)
    assert stated is not None
    assert stated.extrapolated
    many = people(2700, dimension=DIMENSION, seed=5)
    found = float(rates_at(many, np.array([threshold])).rates[0])
    assert stated.low <= found <= stated.high


def test_counted_rates_are_not_called_extrapolated(calibration: Calibration) -> None:
    stated = calibration.fmr_at(calibration.threshold_at(1e-3, ONE_COMPARISON))
    assert stated is not None
    assert not stated.extrapolated


def test_searches_of_real_galleries_keep_the_promised_fpir(calibration: Calibration) -> None:
    strangers = people(4000, dimension=DIMENSION, seed=7)
    for size in (50, 500):
        threshold = calibration.threshold_at(0.05, GallerySize(size, size))
        highest = (strangers.vectors[size:] @ strangers.vectors[:size].T).max(axis=1)
        assert float(np.mean(highest >= threshold)) == pytest.approx(0.05, rel=0.3)


def test_fnmr_counts_mates_below_the_threshold(calibration: Calibration) -> None:
    rates = [calibration.fnmr_at(similarity) for similarity in (0.2, 0.5, 0.8)]
    values = [rate.value for rate in rates if rate is not None]
    assert values == sorted(values)
    data = people(600, [1, 1, 2] * 200, dimension=DIMENSION)
    twice = np.flatnonzero(data.counts == 2)
    starts = np.searchsorted(data.persons, twice)
    own = np.einsum("nd,nd->n", data.vectors[starts], data.vectors[starts + 1])
    assert values[1] == pytest.approx(float(np.mean(own < 0.5)), abs=0.01)


def test_fnmr_is_counted_up_to_a_similarity_of_1() -> None:
    data = people(300, 2, dimension=DIMENSION, noise=0.1)
    made = calibrate(Labelled(data, "photos", "near copies"), "es-test", "float32")
    below, all_of_them = made.fnmr_at(0.98), made.fnmr_at(1.0)
    assert below is not None
    assert all_of_them is not None
    assert below.value < 0.5
    assert all_of_them.value == 1.0


def test_suspected_pairs_raise_the_upper_limits_of_the_tail_too() -> None:
    """The limits hold even if all of them are two people each, at every similarity."""
    data = people(600, dimension=DIMENSION)
    suspected = frozenset((2 * n, 2 * n + 1) for n in range(30))
    made, without = (
        calibrate(Labelled(data, kind, "made up", suspected), "es-test", "float32").fmr
        for kind in ("collection", "photos")
    )
    assert made.rate == without.rate
    assert made.low == without.low
    pairs = 600 * 599 / 2 - 30
    _, most = clopper_pearson(np.array([30.0]), np.array([pairs]))
    counted, tail = made.high[: made.measured], made.high[made.measured :]
    assert len(tail) > 5
    assert min(counted) >= max(tail)
    assert min(tail) >= most[0]
    assert all(np.array(tail) - without.high[made.measured :] >= 30 / pairs)


def test_what_it_rests_on_is_written_down(calibration: Calibration) -> None:
    source = calibration.source
    assert (source.persons, source.faces, source.mated_persons) == (600, 800, 200)
    assert source.person_pairs == 600 * 599 / 2
    assert calibration.created_at.isoformat() == "2026-11-24T00:00:00+00:00"


def test_the_same_faces_give_the_same_calibration(calibration: Calibration) -> None:
    assert fitted().calibration_id == calibration.calibration_id
    assert fitted(seed=1).calibration_id != calibration.calibration_id


def test_too_few_people() -> None:
    with pytest.raises(NotEnoughData, match="99 people are too few") as caught:
        calibrate(Labelled(people(99), "photos", "few"), "es-test", "float32")
    assert caught.value.extra == {"persons": 99, "needed": 100}


def test_the_fewest_people_there_may_be() -> None:
    few = calibrate(Labelled(people(100), "photos", "few"), "es-test", "float32")
    assert few.fnmr is None
    assert few.template_exponent == 1.0
    assert 1e-5 < few.lowest_fmr < 1e-3


def test_templates_of_one_person_are_not_strangers_to_one_another() -> None:
    alike = template_exponents(people(400, 2, dimension=DIMENSION, noise=0.3))
    unlike = template_exponents(people(400, 2, dimension=DIMENSION, noise=2.0))
    best = PersonScore.BEST
    assert 0.2 < alike[best] < unlike[best] <= 1.0


def test_each_score_has_an_exponent_of_its_own() -> None:
    """A centroid is one direction more than a template is, a stranger's only chance."""
    found = template_exponents(people(400, 2, dimension=DIMENSION, noise=0.6))
    assert 0 <= found[PersonScore.CENTROID] < found[PersonScore.FUSED] < found[PersonScore.BEST]
    made = calibrate(
        Labelled(people(400, 2, dimension=DIMENSION, noise=0.6), "photos", "some"),
        "es-test", "float32",
    )  # fmt: skip
    assert made.template_exponent == found[PersonScore.BEST]
    assert [made.exponent_of(score) for score in PersonScore] == list(found.values())


def test_a_tail_of_known_shape_is_found_again() -> None:
    top = compare_non_mated(people(800, dimension=DIMENSION), 500).top
    generator = np.random.default_rng(3)
    true = Tail(0.4, 1e-3, 0.02, -0.1)
    draws = true.start + true.scale / true.shape * (
        generator.random(len(top.similarities)) ** -true.shape - 1
    )
    order = np.sort(draws)[::-1].astype(np.float32)
    found = fit_tail(replace(top, similarities=order), float(top.weights.sum()) * 1000)
    assert found is not None
    assert found.scale == pytest.approx(0.02, rel=0.2)
    assert found.shape == pytest.approx(-0.1, abs=0.12)
    assert found.rate == pytest.approx(1e-3)
    assert found.rate_at(found.similarity_at(1e-4)) == pytest.approx(1e-4)
    assert found.rate_at(0.99) == 0.0


@pytest.mark.parametrize("copies", [20, 40, 90])
def test_no_threshold_is_beyond_a_similarity(copies: int) -> None:
    """One photo under many ids, and nothing is left out: a tail fitted to equal similarities."""
    data = people(300, dimension=DIMENSION)
    data.vectors[:copies] = data.vectors[0]
    made = calibrate(Labelled(data, "photos", "made up"), "es-test", "float32")
    assert made.fmr.similarity[-1] <= 1


def test_a_heavy_tail_ends_at_a_similarity_of_1() -> None:
    data = people(1000, 2, dimension=DIMENSION, noise=0.3)
    split = LabelledEmbeddings.of(
        data.vectors, np.where(np.arange(2000) < 400, np.arange(2000), data.persons + 2000)
    )
    made = calibrate(Labelled(split, "photos", "made up"), "es-test", "float32")
    assert made.fmr.similarity[-1] <= 1
