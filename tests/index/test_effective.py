"""How many different templates some templates amount to."""

import numpy as np
import pytest

from app.index.effective import MOST_COMPARED, effective_numbers, effective_templates
from app.types import FloatArray

D = 192


def cloud(similarity: float, count: int, seed: int = 0) -> FloatArray:
    """Unit vectors around a random direction, any two of about this similarity."""
    generator = np.random.default_rng(seed)
    centre, noise = generator.normal(size=D), generator.normal(size=(count, D))
    centre /= np.linalg.norm(centre)
    vectors = centre + noise * np.sqrt((1 - similarity) / similarity / D)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, np.float32)


def test_one_is_one_and_none_is_none() -> None:
    assert effective_templates(cloud(0.9, 1)) == 1.0
    assert effective_templates(np.empty((0, D), np.float32)) == 0.0


@pytest.mark.parametrize("count", [2, 5, 500, 5_000])
def test_copies_count_as_one(count: int) -> None:
    copies = np.repeat(cloud(0.9, 1), count, axis=0)
    assert effective_templates(copies) == pytest.approx(1.0, rel=0.01)


def test_templates_with_nothing_in_common_count_as_one_each() -> None:
    unrelated = np.eye(D, dtype=np.float32)[:50]
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
