"""All comparisons at once against one at a time."""

import itertools

import numpy as np
import pytest

from app.decision.comparisons import (
    LabelledEmbeddings,
    compare_mated,
    compare_non_mated,
    nearest_person_pairs,
    rates_at,
)
from tests.decision.conftest import people


def brute_force(
    data: LabelledEmbeddings, threshold: float, left_out: frozenset[tuple[int, int]] = frozenset()
) -> float:
    """FMR: the mean over pairs of people of the share of their comparisons that match."""
    shares = []
    for a, b in itertools.combinations(range(data.person_count), 2):
        if (a, b) not in left_out:
            pair = data.vectors[data.persons == a] @ data.vectors[data.persons == b].T
            shares.append(float(np.mean(pair >= threshold)))
    return float(np.mean(shares))


def test_every_pair_of_people_counts_once() -> None:
    data = people(40, [1, 2, 3, 7] * 10, dimension=8)
    found = compare_non_mated(data, 50)
    assert found.pairs == 40 * 39 / 2
    for similarity, rate in zip(found.curve.similarities, found.curve.rates, strict=True):
        assert rate == pytest.approx(brute_force(data, similarity), rel=1e-6)
    assert found.histogram.sum() == pytest.approx(found.pairs)


def test_rates_fall_with_the_threshold_and_lie_in_their_intervals() -> None:
    curve = compare_non_mated(people(300, dimension=16), 100).curve
    assert (np.diff(curve.similarities) > 0).all()
    assert (np.diff(curve.rates) < 0).all()
    assert ((curve.low < curve.rates) & (curve.rates < curve.high)).all()


def test_the_curve_ends_where_ten_pairs_match() -> None:
    found = compare_non_mated(people(200, dimension=16), 100)
    matches = found.curve.rates * found.pairs
    assert 8 <= matches[-1] <= 14
    assert found.curve.rates[0] == pytest.approx(0.3, rel=0.02)


def test_left_out_pairs_are_not_compared() -> None:
    data = people(30, [1, 2] * 15, dimension=8)
    left_out = frozenset({(0, 1), (4, 9)})
    found = compare_non_mated(data, 20, left_out)
    assert found.pairs == 30 * 29 / 2 - 2
    similarity = float(found.curve.similarities[3])
    assert found.curve.rates[3] == pytest.approx(brute_force(data, similarity, left_out))


def test_the_top_are_the_most_similar_of_all() -> None:
    data = people(50, dimension=8)
    top = compare_non_mated(data, 40).top
    similarities = (data.vectors @ data.vectors.T)[np.triu_indices(50, 1)]
    expected = np.sort(similarities)[::-1][: len(top.similarities)]
    assert 40 <= len(top.similarities) <= 45
    assert top.similarities == pytest.approx(expected, abs=1e-6)
    a, b = data.vectors[top.faces_a], data.vectors[top.faces_b]
    assert np.einsum("nd,nd->n", a, b) == pytest.approx(top.similarities, abs=1e-6)
    assert (data.persons[top.faces_a] == top.persons_a).all()


def test_doubtful_pairs_raise_the_upper_limit_alone() -> None:
    data = people(120, dimension=16)
    plain, doubtful = (compare_non_mated(data, 50, doubtful=n).curve for n in (0, 5))
    assert (doubtful.rates == plain.rates).all()
    assert (doubtful.low == plain.low).all()
    assert doubtful.high[-1] > plain.high[-1]


def test_mated_comparisons_weigh_people_alike() -> None:
    data = people(3, [2, 2, 9], dimension=8, noise=1.0)
    threshold = 0.4
    shares = []
    for person in range(3):
        vectors = data.vectors[data.persons == person]
        own = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
        shares.append(float(np.mean(own < threshold)))
    found = compare_mated(data, np.array([threshold]))
    assert found is not None
    curve, count = found
    assert count == 3
    assert curve.rates[0] == pytest.approx(np.mean(shares))


def test_without_a_second_photo_nothing_is_mated() -> None:
    assert compare_mated(people(20), np.array([0.5])) is None


def test_rates_at_a_threshold_of_one_s_own() -> None:
    data = people(60, [1, 3] * 30, dimension=8)
    curve = rates_at(data, np.array([0.3]))
    assert curve.rates[0] == pytest.approx(brute_force(data, 0.3), rel=1e-6)
    assert curve.low[0] < curve.rates[0] < curve.high[0]


def test_blocks_do_not_change_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    data = people(50, [1, 2, 5, 1, 1] * 10, dimension=8)
    whole = rates_at(data, np.array([0.2]))
    monkeypatch.setattr("app.decision.comparisons.BLOCK_ROWS", 7)
    assert rates_at(data, np.array([0.2])).rates == pytest.approx(whole.rates)


def test_one_person_alone_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="two people"):
        compare_non_mated(people(1, 5), 10)


def test_labels_of_any_kind_in_any_order() -> None:
    vectors = np.eye(4, dtype=np.float32)
    data = LabelledEmbeddings.of(vectors, np.array(["bob", "ada", "bob", "cyd"]))
    assert data.persons.tolist() == [0, 1, 1, 2]
    assert (data.vectors == vectors[[1, 0, 2, 3]]).all()
    assert data.counts.tolist() == [1, 2, 1]
    some = data.of_persons(np.array([1, 2]))
    assert (some.persons.tolist(), some.vectors.tolist()) == (
        [0, 0, 1],
        vectors[[0, 2, 3]].tolist(),
    )


def test_nearest_pairs_of_people_come_once_each() -> None:
    data = people(30, 4, dimension=8)
    nearest = nearest_person_pairs(data, 60)
    keys = list(zip(nearest.persons_a.tolist(), nearest.persons_b.tolist(), strict=True))
    assert len(keys) == len(set(keys))
    assert (np.diff(nearest.similarities) <= 0).all()
