"""Of many templates at once the nearest of another person: brute force's answer."""

from collections.abc import Callable

import numpy as np
import pytest

from app.index.certified.index import CertifiedIndex
from app.index.comparator import COSINE, Comparator
from app.index.port import Templates
from tests.index.conftest import settle, templates
from tests.index.test_certified import GALLERIES, LOWERING, clustered, degraded, drawn

NewIndex = Callable[..., CertifiedIndex]
D = 64


def assert_others(
    index: CertifiedIndex,
    held: Templates,
    some: slice,
    floor: float,
    comparator: Comparator = COSINE,
) -> int:
    """How many have another person's template near."""
    probes, persons = held.vectors[some], held.person_keys[some]
    found = index.nearest_others(probes, persons, floor, comparator)
    similarities = comparator.scores(probes, held.vectors)
    similarities[persons[:, None] == held.person_keys] = -np.inf
    highest = similarities.max(axis=1)
    known = found.keys >= 0
    # Those within rounding of the floor may fall on either side of it.
    sure = np.abs(highest - floor) > 1e-5
    np.testing.assert_array_equal(known[sure], (highest >= floor)[sure])
    np.testing.assert_allclose(found.similarities[known], highest[known], atol=1e-5)
    rows = np.searchsorted(held.keys, found.keys[known])
    reported = similarities[np.flatnonzero(known), rows]
    np.testing.assert_allclose(reported, found.similarities[known], atol=1e-5)
    assert np.isneginf(found.similarities[~known]).all()
    return int(known.sum())


@pytest.mark.parametrize("gallery", GALLERIES)
@pytest.mark.parametrize("floor", [0.6, 0.3, 0.0, -2.0])
def test_equal_to_brute_force(new_index: NewIndex, gallery: str, floor: float) -> None:
    held = templates(GALLERIES[gallery](3_000), np.arange(3_000) // 3)
    index = new_index(D)
    index.add(held)
    settle(index)
    assert index.state.shards, "the codes are what is tested here"
    near = assert_others(index, held, slice(150, 350), floor)
    if floor < 0:
        assert near == 200


@pytest.mark.parametrize("floor", [0.6, 0.3, -2.0])
def test_scores_that_are_lower_than_the_cosine(new_index: NewIndex, floor: float) -> None:
    held = templates(degraded(3_000), np.arange(3_000) // 2)
    index = new_index(D)
    index.add(held)
    settle(index)
    near = assert_others(index, held, slice(0, 200), floor, LOWERING)
    assert near <= assert_others(index, held, slice(0, 200), floor)


def test_what_is_gone_is_nobody_s_neighbour(new_index: NewIndex) -> None:
    held = templates(clustered(4_000), np.arange(4_000) // 2)
    index = new_index(D)
    index.add(held)
    settle(index)
    gone = np.random.default_rng(1).random(4_000) < 0.4
    index.remove(held.keys[gone])
    left = Templates(held.keys[~gone], held.person_keys[~gone], held.vectors[~gone])
    assert assert_others(index, left, slice(0, 500), 0.5) > 100


def test_before_anything_is_coded_and_where_nothing_can_be(new_index: NewIndex) -> None:
    for dimension in (D, 10):
        held = templates(drawn(900, dimension=dimension), np.arange(900) // 3)
        index = new_index(dimension)
        index.add(held)
        assert not index.state.shards
        assert_others(index, held, slice(0, 900), 0.25)


def test_a_person_alone_has_no_others(new_index: NewIndex) -> None:
    held = templates(drawn(50), np.zeros(50, np.int64))
    index = new_index(D)
    index.add(held)
    found = index.nearest_others(held.vectors, held.person_keys, -2.0)
    assert (found.keys == -1).all()
