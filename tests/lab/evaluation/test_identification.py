"""Open-set identification, score rules, discard and predictions on made-up people."""

from dataclasses import replace

import numpy as np
import pytest

from app.decision.calibration import Calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.domain import SharedDirection
from app.decision.fitting import Labelled, calibrate
from app.decision.policy import CollectionPolicy
from app.index.comparator import COSINE
from app.index.port import GallerySize
from app.lab.evaluation.identification import (
    RULE_REPEATS,
    at_setting,
    by_person,
    compare_rules,
    identify,
    rates_of,
    search,
    split,
)
from app.lab.evaluation.prediction import check_predictions, fpir_by_maximum, simulate_fpir
from app.lab.evaluation.sample import (
    FaceSample,
    compare_all,
    equal_error_rate,
    error_versus_discard,
)
from app.types import Quality
from tests.decision.conftest import GOOD, people
from tests.decision.test_calibration import SHARED


def sample(data: LabelledEmbeddings, qualities: list[Quality] | None = None) -> FaceSample:
    count = len(data.persons)
    return FaceSample(
        data,
        tuple(f"{i}.jpg" for i in range(count)),
        tuple(f"p{i}" for i in range(data.person_count)),
        tuple(qualities or [GOOD] * count),
        frozenset(),
    )


def own(faces: FaceSample) -> Calibration:
    return calibrate(Labelled(faces.data, "photos", "made up"), "es-test", "float32")


MADE_UP = sample(people(600, [1, 1, 3] * 200, dimension=48, noise=0.7))


def test_who_is_enrolled_and_who_is_a_stranger() -> None:
    enrolled, strangers = split(MADE_UP)
    assert (len(enrolled), len(strangers)) == (200, 400)
    named = FaceSample(*(getattr(MADE_UP, n) for n in ("data", "images", "names", "qualities")),
                       frozenset({(2, 3), (0, 5)}))  # fmt: skip
    enrolled, strangers = split(named)
    assert 3 not in strangers
    assert 5 not in enrolled


def test_searches_equal_a_search_by_hand() -> None:
    enrolled, strangers = split(MADE_UP)
    found = search(MADE_UP, enrolled, strangers)
    data = MADE_UP.data
    gallery = [data.vectors[np.flatnonzero(data.persons == p)[0]] for p in enrolled]
    probe = int(np.flatnonzero(data.persons == enrolled[3])[2])
    own = float(data.vectors[probe] @ gallery[3])
    place = np.flatnonzero(found.persons == enrolled[3])[1]
    assert found.own[place] == pytest.approx(own)
    assert found.first[place] == (own >= max(float(data.vectors[probe] @ g) for g in gallery))
    stranger = data.vectors[np.flatnonzero(data.persons == strangers[7])[0]]
    assert found.strangers[7] == pytest.approx(max(float(stranger @ g) for g in gallery))


def test_measured_rates_keep_the_targets_and_grow_with_the_gallery() -> None:
    small, large = identify(MADE_UP, np.random.default_rng(0), sizes=(50,))
    assert (small.persons, large.persons) == (50, 200)
    for figures in (small, large):
        for point in figures.points:
            assert point.fpir.value <= point.target_fpir + 1e-9
            assert point.fnir.low <= point.fnir.value <= point.fnir.high
    assert large.points[2].threshold > small.points[2].threshold
    assert large.rank_one.value < small.rank_one.value
    assert large.det.y == tuple(sorted(large.det.y))


def test_a_fpir_that_the_strangers_are_too_few_for_is_not_reported() -> None:
    """Three false positives at least must be expected: 51 strangers tell nothing of 0.3 %."""
    few = sample(people(120, [2] * 69 + [1] * 51, dimension=48, noise=0.7))
    (figures,) = identify(few, np.random.default_rng(0))
    assert [point.target_fpir for point in figures.points] == [0.1]
    assert min(figures.det.x) >= 3 / 51
    more = sample(people(400, [2] * 60 + [1] * 340, dimension=48, noise=0.7))
    (figures,) = identify(more, np.random.default_rng(0))
    assert [point.target_fpir for point in figures.points] == [0.1, 0.03, 0.01]
    for score in compare_rules(more, np.random.default_rng(0)):
        assert set(score.fnir) == {"0.01"}


def test_the_threshold_of_a_target_allows_as_many_strangers_as_the_target() -> None:
    """Of 400 strangers 40, 12 and 4: the rule of `lowest_threshold`, as for comparisons."""
    (figures,) = identify(MADE_UP, np.random.default_rng(0), sizes=())
    assert [point.fpir.value for point in figures.points] == pytest.approx([0.1, 0.03, 0.01])


def test_rules_are_compared_at_the_threshold_that_the_target_allows() -> None:
    """At 1 % three of 300 strangers may be found, so the threshold lies above the fourth."""
    faces = sample(people(400, [3] * 100 + [1] * 300, dimension=48, noise=0.7))
    data, strangers = faces.data, np.arange(300, 600)
    (found,) = [f for f in compare_rules(faces, np.random.default_rng(0)) if f.rule == "max"]
    missed = []
    generator = np.random.default_rng(0)
    for _ in range(RULE_REPEATS):
        own = [generator.permutation(np.flatnonzero(data.persons == p))[:3] for p in range(100)]
        picks = np.array(own)
        scores = data.similarities(strangers, picks[:, :2].ravel())
        threshold = np.sort(scores.max(axis=1))[-4]
        mated = data.similarities(picks[:, 2], picks[:, :2].ravel())
        mated = mated.reshape(100, 100, 2).max(axis=2)
        mine = np.diagonal(mated)
        missed.append(np.mean((mine < mated.max(axis=1)) | (mine <= threshold)))
    assert found.fnir["0.01"].value == pytest.approx(np.mean(missed))


def test_rates_at_the_setting_of_the_service() -> None:
    """The pack's calibration decides, at the threshold for a gallery of that size."""
    calibration = own(MADE_UP)
    found = at_setting(MADE_UP, "photos", CollectionPolicy(), calibration, 0.5)
    assert found is not None
    assert found.threshold == calibration.threshold_at(0.01, GallerySize(200, 200))
    assert (found.persons, found.strangers, found.same_data) == (200, 400, True)
    assert found.fpir.low <= 0.01 <= found.fpir.high
    constant = at_setting(MADE_UP, "photos", CollectionPolicy(), None, 0.2)
    assert constant is not None
    assert (constant.threshold, constant.target_fpir) == (0.2, None)
    assert constant.fpir.value > found.fpir.value
    assert at_setting(sample(people(9, [2] * 9)), "", CollectionPolicy(), None, 0.2) is None


def test_the_setting_compares_as_the_pack_does_whatever_is_fitted() -> None:
    data = people(300, [1, 1, 3] * 100, dimension=48, noise=0.7)
    vectors = data.vectors + np.float32(0.5) * np.eye(48, dtype=np.float32)[0]  # all are degraded
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shared = SharedDirection.model_validate({**SHARED, "direction": [1.0] + [0.0] * 47})
    by_pack = LabelledEmbeddings(vectors, data.persons, shared.comparator)
    shipped = calibrate(Labelled(by_pack, "photos", "made up", shared=shared), "es-test", "float32")
    right = at_setting(sample(by_pack), "photos", CollectionPolicy(), shipped, 0.5)
    by_cosine = replace(by_pack, comparator=COSINE)
    assert right is not None
    assert right.fpir.low <= 0.01 <= right.fpir.high
    assert at_setting(sample(by_cosine), "photos", CollectionPolicy(), shipped, 0.5) == right
    assert rates_of(
        search(sample(by_cosine), *split(sample(by_cosine))), right.threshold, right.strangers
    ) != (right.fpir, right.fnir)


def test_a_person_s_searches_are_one_cluster() -> None:
    persons = np.repeat(np.arange(20), 10)
    clustered = by_person(np.repeat(np.arange(20) < 2, 10), persons)
    spread = by_person(np.arange(200) % 10 == 0, persons)
    assert clustered.value == spread.value == 0.1
    assert clustered.high > spread.high


@pytest.mark.slow
def test_promises_are_kept_on_people_held_out() -> None:
    data = sample(people(900, [1, 2, 2] * 300, dimension=48))
    found = check_predictions(data, own(data), np.random.default_rng(0))
    held_out = [one for one in found if one.held_out]
    assert {one.persons for one in held_out} == {100}
    assert {one.templates_per_person for one in found} == {1, 2}
    for one in held_out:
        assert one.simulated.value == pytest.approx(one.target_fpir, rel=0.35)


def test_the_highest_of_n_foretells_the_simulation_exactly() -> None:
    everyone, generator = np.arange(600), np.random.default_rng(0)
    for size, templates in ((1, 1), (150, 1), (60, 3)):
        gallery = GallerySize(size, size * templates)
        foretold = fpir_by_maximum(MADE_UP, everyone, gallery, 0.35)
        simulated = simulate_fpir(MADE_UP, everyone, gallery, 0.35, generator)
        assert foretold is not None
        assert simulated == pytest.approx(foretold, rel=0.1, abs=0.003)
    assert fpir_by_maximum(MADE_UP, everyone, GallerySize(600, 600), 0.35) is None
    assert fpir_by_maximum(MADE_UP, everyone, GallerySize(300, 300), -1.0) == 1.0


def test_too_few_people_make_no_promise() -> None:
    few = sample(people(150))
    assert check_predictions(few, own(few), np.random.default_rng(0)) == ()
    assert check_predictions(MADE_UP, None, np.random.default_rng(0)) == ()


def test_more_templates_find_more_people() -> None:
    data = sample(people(400, [1, 1, 1, 6] * 100, dimension=48, noise=1.0))
    figures = {(one.rule, one.templates): one for one in
               compare_rules(data, np.random.default_rng(0))}  # fmt: skip
    assert set(figures) == {
        (rule, m) for rule in ("max", "mean_of_top_2", "mean", "centroid") for m in (2, 3, 5)
    }
    assert figures["max", 5].fnir["0.01"].value < figures["max", 2].fnir["0.01"].value
    # Noise that is independent from photo to photo is what a mean takes away.
    assert figures["centroid", 5].fnir["0.01"].value < figures["max", 5].fnir["0.01"].value


def test_discarding_by_a_measure_that_knows_helps_and_by_another_does_not() -> None:
    from dataclasses import replace

    generator = np.random.default_rng(0)
    clean = people(300, 2, dimension=48, noise=0.3)
    vectors = clean.vectors.copy()
    bad = generator.random(len(vectors)) < 0.1
    vectors[bad] += generator.normal(size=(int(bad.sum()), 48)).astype(np.float32) * 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    qualities = [replace(GOOD, sharpness=float(10 if b else 300 + generator.random()),
                         face_size_px=float(generator.random() + 100)) for b in bad]  # fmt: skip
    data = sample(LabelledEmbeddings(vectors, clean.persons), qualities)
    figures = {one.measure: one for one in error_versus_discard(data, 0.6)}
    assert figures["sharpness"].gain > 0.3
    assert abs(figures["face_size_px"].gain) < 0.25
    assert figures["sharpness"].fnmr[0] == figures["face_size_px"].fnmr[0]


def test_all_against_all() -> None:
    figures = compare_all(MADE_UP, None)
    assert figures is not None
    assert figures.mated_comparisons == 200 * 3
    assert figures.comparisons == (1000 * 999 // 2) - 600
    assert figures.person_pairs == 600 * 599 / 2
    assert sum(figures.histogram.mated) == pytest.approx(1)
    assert sum(figures.histogram.non_mated) == pytest.approx(1)
    similarities = [pair.similarity for pair in figures.worst_non_mated]
    assert similarities == sorted(similarities, reverse=True)
    assert figures.worst_mated[0].similarity == min(p.similarity for p in figures.worst_mated)
    assert 0 < figures.eer.rate < 0.2


def test_the_eer_is_where_the_curves_cross() -> None:
    from app.decision.comparisons import ErrorCurve

    grid, zeros = np.array([0.1, 0.2, 0.3]), np.zeros(3)
    fmr = ErrorCurve(grid, np.array([0.3, 0.1, 0.0]), zeros, zeros)
    fnmr = ErrorCurve(grid, np.array([0.0, 0.05, 0.15]), zeros, zeros)
    crossing = equal_error_rate(fmr, fnmr, 20)
    assert crossing.threshold == pytest.approx(0.225)
    assert crossing.rate == pytest.approx(0.0833, abs=0.01)
