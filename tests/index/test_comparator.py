"""The comparison score: the cosine, lowered where both sides lean towards a shared direction."""

import numpy as np
import pytest
from numpy.typing import NDArray

from app.index.comparator import COSINE, Comparator, Covering

D = 32
Vectors = NDArray[np.float32]


def unit(vectors: NDArray[np.floating]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def drawn(count: int, seed: int = 0) -> Vectors:
    return unit(np.random.default_rng(seed).normal(size=(count, D)))


DIRECTION = drawn(1, seed=9)[0]
# Covered faces are those beyond 0.1 along another direction.
COVER = drawn(1, seed=11)[0]
LOWERING = Comparator(DIRECTION, 1.5, Covering(3 * COVER, offset=0.3, weight=0.2))


def leaning(count: int, seed: int = 1) -> Vectors:
    return unit(drawn(count, seed) + DIRECTION)


def covered(count: int, seed: int = 3) -> Vectors:
    return unit(drawn(count, seed) + COVER)


def by_definition(one: Vectors, other: Vectors) -> float:
    lean = max(0.0, float(one @ DIRECTION)) * max(0.0, float(other @ DIRECTION))
    cover = np.prod([np.clip(float(3 * face @ COVER) - 0.3, 0, 1) for face in (one, other)])
    return float(one @ other) - 1.5 * lean - 0.2 * float(cover)


def test_scores_are_those_of_the_definition() -> None:
    ones = np.concatenate([drawn(20), leaning(20), covered(20)])
    others = np.concatenate([leaning(15, seed=2), covered(15)])
    expected = [[by_definition(one, other) for other in others] for one in ones]
    np.testing.assert_allclose(LOWERING.scores(ones, others), expected, atol=1e-5)
    pairs = LOWERING.pairwise(ones[:30], others)
    np.testing.assert_allclose(pairs, np.diagonal(np.array(expected)[:30]), atol=1e-5)
    assert LOWERING.score(ones[25], others[3]) == pytest.approx(expected[25][3], abs=1e-5)


def test_only_pairs_that_both_lean_are_lowered_and_none_is_raised() -> None:
    upright, bad = drawn(200), leaning(200)
    away = upright[upright @ DIRECTION < 0]
    away = away[away @ COVER < 0.1]
    np.testing.assert_allclose(LOWERING.scores(away, bad), away @ bad.T, atol=1e-6)
    np.testing.assert_allclose(LOWERING.scores(away, covered(99)), away @ covered(99).T, atol=1e-6)
    assert (LOWERING.scores(covered(99), covered(99)) < covered(99) @ covered(99).T - 0.1).all()
    assert (LOWERING.scores(bad, bad) < bad @ bad.T - 0.1).all()
    assert (LOWERING.scores(upright, upright) <= upright @ upright.T + 1e-6).all()


@pytest.mark.parametrize("weight", [0.5, 1.5, 2.0, 4.0, 50.0])
def test_no_score_is_above_its_upper_bound(weight: float) -> None:
    """Rows on both sides of the direction, and probes that hardly and that nearly only lean."""
    comparator = Comparator(DIRECTION, weight, LOWERING.covering)
    rows = np.concatenate([drawn(200), leaning(200, seed=2), -leaning(200, seed=4), [DIRECTION]])
    probes = [*drawn(20, seed=5), *leaning(20), unit(0.01 * drawn(1)[0] + DIRECTION), DIRECTION]
    for probe in probes:
        bound = comparator.probe(probe).upper_bound
        assert np.linalg.norm(bound.vector) == pytest.approx(1, abs=1e-5)
        assert bound.length <= 1 + 1e-5, "never looser than the cosine"
        scores = comparator.scores(probe[np.newaxis], rows)[0]
        assert (scores <= bound.length * (rows @ bound.vector) + 1e-5).all()
        for score, cosine in zip(scores, rows @ bound.vector, strict=True):
            assert score <= 0 or cosine >= bound.least_cosine(float(score)) - 1e-6


def test_the_upper_bound_is_nearer_than_the_cosine_where_both_lean() -> None:
    probe, rows = leaning(1)[0], leaning(200, seed=2)
    bound = LOWERING.probe(probe).upper_bound
    scores = LOWERING.scores(probe[np.newaxis], rows)[0]
    excess = bound.length * (rows @ bound.vector) - scores
    assert (excess < 0.6 * (rows @ probe - scores)).all()


def test_without_a_direction_it_is_the_cosine() -> None:
    vectors = leaning(10)
    np.testing.assert_array_equal(COSINE.scores(vectors, vectors), vectors @ vectors.T)
    assert COSINE.probe(vectors[0]).lowerings == ()
    assert COSINE.degradation(vectors) is None


def test_degradation_is_how_far_a_face_leans() -> None:
    bad = LOWERING.degradation(leaning(100))
    good = LOWERING.degradation(drawn(100))
    assert bad is not None
    assert good is not None
    assert bad.min() > good.max()


def test_a_score_stays_within_one() -> None:
    face = leaning(1)[0]
    assert -1 <= LOWERING.score(face, -face) <= 1
    assert COSINE.score(face, face) <= 1
