"""One person under two ids stands out, and strangers don't."""

import numpy as np
import pytest

from app.decision.comparisons import LabelledEmbeddings
from app.decision.duplicates import suspected_duplicates
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


@pytest.mark.parametrize("seed", range(5))
def test_strangers_are_not_suspected(seed: int) -> None:
    assert suspected_duplicates(people(400, dimension=128, seed=seed)) == []


def test_a_small_gallery_of_strangers() -> None:
    assert suspected_duplicates(people(100, dimension=128)) == []
