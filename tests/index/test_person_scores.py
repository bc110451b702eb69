"""Searches by a person's centroid, or by centroid and best template: as brute force answers; and
how many different templates some templates amount to."""

from collections.abc import Callable

import numpy as np
import pytest

from app.index.certified import combined
from app.index.certified.index import CertifiedIndex
from app.index.comparator import COSINE, Comparator
from app.index.person_scores import (
    MOST_COMPARED,
    PersonScore,
    effective_numbers,
    effective_templates,
    ratios_of,
)
from app.index.port import Templates
from app.types import FloatArray
from tests.index.conftest import (
    Vectors,
    assert_equal_to_brute_force,
    brute_force,
    same_answer,
    settle,
    unit,
)

NewIndex = Callable[..., CertifiedIndex]
D = 64
COMBINED = [PersonScore.CENTROID, PersonScore.FUSED]


def people(
    generator: np.random.Generator, count: int, persons: int, *, spread: float, lean: float = 0.0
) -> Templates:
    """Templates of persons who have one to many of them, `spread` around each person's own
    direction; some lean towards the direction that degraded faces share."""
    centres = unit(generator.standard_normal((persons, D)) + 0.5 * generator.standard_normal(D))
    owner = np.sort(generator.geometric(3 / persons, count) % persons)
    noise = generator.standard_normal((count, D)) / np.sqrt(D)
    bad = (generator.random(count) < 0.3)[:, np.newaxis]
    vectors = unit(centres[owner] + spread * noise + lean * bad * LOWERING.direction)
    order = generator.permutation(count)
    return Templates(np.arange(1, count + 1), owner[order] * 3, vectors[order])


LOWERING = Comparator(unit(np.random.default_rng(21).standard_normal((1, D)))[0], 1.5)


def probes_of(generator: np.random.Generator, held: Templates) -> Vectors:
    """Photos of people who are there, of strangers, degraded ones, and opposite directions."""
    some = held.vectors[generator.integers(0, len(held.vectors), 6)]
    mated = unit(some + 0.08 * generator.standard_normal(some.shape))
    strangers = unit(generator.standard_normal((4, D)))
    bad = unit(strangers[:2] + LOWERING.direction)
    return np.concatenate([mated, strangers, bad, -some[:2]])


@pytest.mark.parametrize("score", COMBINED)
@pytest.mark.parametrize("comparator", [COSINE, LOWERING], ids=["cosine", "lowered"])
@pytest.mark.parametrize(
    "spread", [1.0, *(pytest.param(far, marks=pytest.mark.slow) for far in (0.05, 8.0))]
)
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 4))]
)
def test_answers_equal_brute_force(
    new_index: NewIndex, score: PersonScore, comparator: Comparator, spread: float, seed: int
) -> None:
    """Whatever the templates of a person have in common, and after deletions."""
    generator = np.random.default_rng(seed)
    held = people(generator, 2_500, 400, spread=spread, lean=1.2)
    index = new_index(D)
    for some in np.array_split(np.arange(2_500), 3):
        index.add(Templates(held.keys[some], held.person_keys[some], held.vectors[some]))
        settle(index)
    assert index.state.shards, "the codes are what is tested here"
    probes = probes_of(generator, held)
    assert_equal_to_brute_force(index, held, probes, 5, comparator, score)
    gone = generator.random(2_500) < 0.4
    gone |= held.person_keys == held.person_keys[0]
    index.remove(held.keys[gone])
    left = Templates(held.keys[~gone], held.person_keys[~gone], held.vectors[~gone])
    for _ in range(2):
        assert_equal_to_brute_force(index, left, probes, 1, comparator, score)
        assert_equal_to_brute_force(index, left, probes[:1], 7, comparator, score)
        settle(index)


@pytest.mark.parametrize("score", COMBINED)
def test_a_filter_is_searched_exactly(new_index: NewIndex, score: PersonScore) -> None:
    generator = np.random.default_rng(5)
    held = people(generator, 1_500, 300, spread=1.0)
    index = new_index(D)
    index.add(held)
    settle(index)
    allowed = np.unique(held.person_keys)[::4]
    some = np.isin(held.person_keys, allowed)
    among = Templates(held.keys[some], held.person_keys[some], held.vectors[some])
    probes = probes_of(generator, held)
    for probe, hits in zip(
        probes, index.search_persons(probes, 4, allowed, LOWERING, score), strict=True
    ):
        same_answer(hits, brute_force(among, probe, 4, LOWERING, score))
    assert index.search_persons(probes[:1], 4, np.empty(0, np.int64), score=score) == [[]]


def test_the_best_template_is_named_and_single_templates_score_as_ever(
    new_index: NewIndex,
) -> None:
    a = np.zeros(D, np.float32)
    a[0] = 1
    tilted = unit(np.array([[1, 1, *[0] * (D - 2)], [1, -2, *[0] * (D - 2)]]))
    index = new_index(D)
    vectors = np.concatenate([tilted, unit(np.ones((1, D)))])
    index.add(Templates(np.array([1, 2, 3]), np.array([7, 7, 8]), vectors))
    rows = [index.search_persons(a[np.newaxis], 2, score=score)[0] for score in PersonScore]
    assert [(hit.person_key, hit.template_key) for row in rows for hit in row] == 3 * [
        (7, 1),
        (8, 3),
    ]
    best, centroid, fused = (row[0].similarity for row in rows)
    assert best == pytest.approx(np.sqrt(0.5))
    middle = tilted.sum(axis=0)
    assert centroid == pytest.approx(middle[0] / np.linalg.norm(middle))
    assert fused == pytest.approx((best + centroid) / 2)
    assert len({row[1].similarity for row in rows}) == 1


@pytest.mark.parametrize("score", COMBINED)
def test_templates_that_cancel_out(new_index: NewIndex, score: PersonScore) -> None:
    """Their centroid has no direction: its score is the sum of the scores, which is 0 here."""
    probe = unit(np.ones((1, D)))
    index = new_index(D)
    index.add(Templates(np.array([1, 2]), np.array([7, 7]), np.concatenate([probe, -probe])))
    ((hit,),) = index.search_persons(probe, 1, score=score)
    assert hit.similarity == pytest.approx(0.0 if score is PersonScore.CENTROID else 0.5, abs=1e-5)


@pytest.mark.parametrize("score", COMBINED)
def test_a_score_that_its_best_template_does_not_foretell(
    new_index: NewIndex, score: PersonScore
) -> None:
    """The person with the nearest centroid has no template among the nearest hundred."""
    generator = np.random.default_rng(3)
    probe = unit(generator.standard_normal((1, D)))
    sideways = generator.standard_normal((40, D))
    sideways -= sideways @ probe.T * probe
    around = unit(probe + 2 * unit(sideways))
    others = generator.standard_normal((2_000, D))
    others = unit(others - others @ probe.T * probe)
    close = 0.55 * probe + np.sqrt(1 - 0.55**2) * others[:200]
    vectors = np.concatenate([around, close, others[200:]]).astype(np.float32)
    persons = np.concatenate([np.zeros(40, np.int64), np.arange(1, 2_001)])
    held = Templates(np.arange(1, 2_041), persons, vectors)
    index = new_index(D)
    index.add(held)
    settle(index)
    ((hit,),) = index.search_persons(probe, 1, score=score)
    assert hit.person_key == 0
    assert_equal_to_brute_force(index, held, probe, 9, COSINE, score)


def test_bounds_hold_for_any_templates() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        count = int(generator.integers(1, 9))
        spread = generator.uniform(0, 3)
        vectors = unit(
            generator.standard_normal(8) + spread * generator.standard_normal((count, 8))
        )
        scores = LOWER_8.scores(unit(generator.standard_normal((1, 8))), vectors)[0].astype(float)
        held, length = np.array([count]), np.array([np.linalg.norm(vectors.sum(axis=0))])
        best, ratio = scores.max(keepdims=True), ratios_of(held, length)
        for score in PersonScore:
            (found,) = score.of(best, np.array([scores.sum()]), held, length)
            assert found <= score.most(best, ratio)[0] + 1e-6
            assert best[0] >= score.least_best(float(found), float(ratio[0])) - 1e-6


LOWER_8 = Comparator(unit(np.ones((1, 8)))[0], 1.5)


def test_most_rows_are_never_scored(new_index: NewIndex) -> None:
    """Of people whose photos are about as alike as those of press photos."""
    generator = np.random.default_rng(4)
    centres = np.repeat(unit(generator.standard_normal((2_000, 192))), 2, axis=0)
    vectors = unit(centres + 0.55 * unit(generator.standard_normal((4_000, 192))))
    index = new_index(192)
    index.add(Templates(np.arange(1, 4_001), np.repeat(np.arange(2_000), 2), vectors))
    settle(index)
    index.search_persons(vectors[:50], 1, score=PersonScore.FUSED)
    assert index.costs.exhaustive == 0
    assert index.costs.scored < 50 * 2_000


def test_persons_are_scored_some_at_a_time(
    new_index: NewIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combined, "PERSONS_AT_ONCE", 7)
    monkeypatch.setattr(combined, "EXTRA_PERSONS", 0)
    generator = np.random.default_rng(6)
    held = people(generator, 1_500, 300, spread=8.0)
    index = new_index(D)
    index.add(held)
    settle(index)
    for score in COMBINED:
        assert_equal_to_brute_force(index, held, probes_of(generator, held), 3, COSINE, score)


def test_one_template_a_person_is_searched_as_ever(new_index: NewIndex) -> None:
    held = unit(np.random.default_rng(7).standard_normal((1_000, D)))
    index = new_index(D)
    index.add(Templates(np.arange(1, 1_001), np.arange(1_000), held))
    settle(index)
    best = index.search_persons(held[:5], 3)
    assert index.search_persons(held[:5], 3, score=PersonScore.FUSED) == best
    assert index.costs.scans - index.costs.widened == 2 * 5  # one first scan a search
    index.add(Templates(np.array([2_000]), np.array([0]), -held[:1]))
    found = index.search_persons(held[:1], 1, score=PersonScore.FUSED)
    assert found[0][0].person_key == 0
    assert found[0][0].similarity == pytest.approx(0.5, abs=1e-5)


DIMENSION = 192


def cloud(similarity: float, count: int, seed: int = 0) -> FloatArray:
    """Unit vectors around a random direction, any two of about this similarity."""
    generator = np.random.default_rng(seed)
    centre, noise = generator.normal(size=DIMENSION), generator.normal(size=(count, DIMENSION))
    centre /= np.linalg.norm(centre)
    vectors = centre + noise * np.sqrt((1 - similarity) / similarity / DIMENSION)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, np.float32)


def test_one_is_one_and_none_is_none() -> None:
    assert effective_templates(cloud(0.9, 1)) == 1.0
    assert effective_templates(np.empty((0, DIMENSION), np.float32)) == 0.0


@pytest.mark.parametrize("count", [2, 5, 500, 5_000])
def test_copies_count_as_one(count: int) -> None:
    copies = np.repeat(cloud(0.9, 1), count, axis=0)
    assert effective_templates(copies) == pytest.approx(1.0, rel=0.01)


def test_templates_with_nothing_in_common_count_as_one_each() -> None:
    unrelated = np.eye(DIMENSION, dtype=np.float32)[:50]
    assert effective_templates(unrelated) == pytest.approx(50, rel=0.06)


def test_the_more_alike_they_are_the_less_they_count() -> None:
    numbers = [effective_templates(cloud(s, 20)) for s in (0.2, 0.7, 0.9, 0.99, 0.9999)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] > 17
    assert numbers[-1] < 1.3


def test_photos_of_one_face_count_as_measured() -> None:
    # Of LFW's people, whose photos are 0.74 similar: twice the strangers meet two of them, less a
    # tenth, and sixteen reach no more than ten different ones would.
    assert effective_templates(cloud(0.74, 2)) == pytest.approx(1.93, abs=0.02)
    assert effective_templates(cloud(0.74, 16)) == pytest.approx(10.8, abs=0.6)


def test_many_copies_change_nothing_for_the_others() -> None:
    four = cloud(0.74, 4)
    copies = np.concatenate([four, np.repeat(four[:1], 100, axis=0)])
    assert effective_templates(copies) == pytest.approx(effective_templates(four), rel=0.01)


def test_beyond_those_that_are_compared_the_others_are_like_them() -> None:
    many = cloud(0.8, 4 * MOST_COMPARED)
    all_of_them = float(effective_numbers(many[np.newaxis], len(many))[0])
    assert effective_templates(many) == pytest.approx(all_of_them, rel=0.25)


def test_people_together_are_as_each_alone() -> None:
    people = np.stack([cloud(s, 6, seed) for seed, s in enumerate((0.3, 0.8, 0.99))])
    alone = [effective_templates(one) for one in people]
    assert effective_numbers(people, 6).tolist() == pytest.approx(alone)
