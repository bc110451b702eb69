"""Each template's nearest of another person and of its own: brute force's, a part at a time."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.decision.neighbours import Neighbours, find_neighbours
from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonTemplate
from app.store.schema import migrate
from app.store.store import Store
from app.types import FloatArray
from tests.writing import delete_person, enroll_person

DIMENSION, AT_ONCE = 16, 64
EXACTLY = 2.0


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    engine = create_engine(f"sqlite:///{tmp_path / 'likeness.db'}")
    migrate(engine)
    gallery = Gallery(Store(engine), IndexFactory(2), "es-test", DIMENSION)
    yield gallery
    gallery.close()


def enroll(gallery: Gallery, persons: np.ndarray) -> FloatArray:
    """A random template for each number of a person, in that order."""
    vectors = np.random.default_rng(3).normal(size=(len(persons), DIMENSION))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    rows = [
        PersonTemplate(f"p{person}", None, NewTemplate(vector, str(i)))
        for i, (person, vector) in enumerate(zip(persons, vectors, strict=True))
    ]
    gallery.enroll_many("default", rows)
    return vectors


def look(gallery: Gallery, threshold: float, enough: float = EXACTLY) -> Neighbours:
    nothing = lambda *_: None  # noqa: E731
    return find_neighbours(gallery, "default", threshold, enough, nothing, own_at_once=AT_ONCE)


def brute_force(vectors: FloatArray, persons: np.ndarray) -> tuple[FloatArray, FloatArray]:
    """The highest similarity of each row to another person's, and to its own person's others."""
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    same = persons[:, np.newaxis] == persons
    return (
        np.where(same, -np.inf, similarities).max(axis=1),
        np.where(same, similarities, -np.inf).max(axis=1),
    )


@pytest.mark.parametrize("order", ["together", "in turn"])
def test_equal_to_brute_force(gallery: Gallery, order: str) -> None:
    # One person with more templates than are compared at once, some with one, the rest with three.
    persons = np.concatenate(
        [np.zeros(3 * AT_ONCE + 7), np.arange(1, 100), np.repeat(np.arange(100, 150), 3)]
    ).astype(np.int64)
    if order == "in turn":
        persons = np.random.default_rng(1).permutation(persons)
    vectors = enroll(gallery, persons)
    found = look(gallery, 0.8)
    other, own = brute_force(vectors, persons)
    near = other >= 0.8
    assert 5 < near.sum() < len(persons)
    np.testing.assert_array_equal(found.other >= 0, near)
    np.testing.assert_allclose(found.similarity[near], other[near], atol=1e-5)
    np.testing.assert_allclose(found.own, own, atol=1e-5)
    reached = (vectors[near] * vectors[found.other[near]]).sum(axis=1)
    np.testing.assert_allclose(reached, other[near], atol=1e-5)


def test_an_own_similarity_that_is_enough_ends_the_comparison(gallery: Gallery) -> None:
    persons = np.zeros(5 * AT_ONCE, np.int64)
    vectors = enroll(gallery, persons)
    _, own = brute_force(vectors, persons)
    enough = float(np.quantile(own, 0.5))
    found = look(gallery, 0.9, enough).own
    below = own < enough
    np.testing.assert_allclose(found[below], own[below], atol=1e-5)
    assert (found[~below] >= enough - 1e-5).all()


def test_an_import_beside_it_does_not_prolong_it(gallery: Gallery) -> None:
    enroll(gallery, np.arange(40) // 2)
    steps = []

    def import_more(done: int, total: int) -> None:
        steps.append(done)
        vector = np.eye(DIMENSION, dtype=np.float32)[len(steps) % DIMENSION]
        person = f"new{len(steps)}"
        enroll_person(gallery, "default", person, None, [NewTemplate(vector, "new")])
        if len(steps) > 30:
            raise TimeoutError("it goes on for as long as the import does")

    assert len(find_neighbours(gallery, "default", 0.9, EXACTLY, import_more).keys) == 40


def test_what_is_deleted_meanwhile_does_not_stop_it(gallery: Gallery) -> None:
    enroll(gallery, np.arange(300) // 3)
    gone = []

    def delete_somebody(done: int, total: int) -> None:
        gone.append(delete_person(gallery, "default", f"p{len(gone)}"))

    found = find_neighbours(gallery, "default", 0.5, EXACTLY, delete_somebody)
    assert len(found.keys) == 300
    assert gone
    assert np.isneginf(found.own[:3]).all(), "there was nothing left to compare"
    assert np.isfinite(found.own[-3:]).all()


def test_the_caller_can_end_it(gallery: Gallery) -> None:
    enroll(gallery, np.zeros(10, np.int64))

    def refuse(done: int, total: int) -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        find_neighbours(gallery, "default", 0.5, EXACTLY, refuse)


@pytest.mark.slow
def test_memory_is_bounded_with_one_person_of_ten_thousand_templates(gallery: Gallery) -> None:
    """All their similarities with one another would be 400 MB."""
    enroll(gallery, np.concatenate([np.zeros(10_000, np.int64), [1, 1, 2]]))
    gallery.size("default")
    tracemalloc.start()
    try:
        find_neighbours(gallery, "default", 0.99, EXACTLY, lambda *_: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * 2**20
