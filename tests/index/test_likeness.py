"""How alike the people of an index are: the same for the same templates, and cheap to keep."""

from collections.abc import Callable

import numpy as np
import pytest

from app.index.certified import index as certified
from app.index.certified.index import CertifiedIndex
from app.index.comparator import COSINE
from app.index.likeness import LEAST_PERSONS, PERSONS
from app.index.port import Templates
from tests.index.conftest import Vectors, settle, templates, unit
from tests.index.test_certified import LOWERING, D, degraded, drawn

NewIndex = Callable[..., CertifiedIndex]


def filled(new_index: NewIndex, held: Templates) -> CertifiedIndex:
    index = new_index(D)
    index.add(held)
    return index


def expected(vectors: Vectors) -> float:
    return float(np.quantile((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)], 0.99))


def test_it_is_the_99th_percentile_of_different_people_s_scores(new_index: NewIndex) -> None:
    held = templates(drawn(300), np.repeat(np.arange(100), 3))
    index = filled(new_index, held)
    # The template with the smallest key of each.
    assert index.likeness(COSINE) == pytest.approx(expected(held.vectors[::3]), abs=1e-6)
    lowered = LOWERING.scores(held.vectors[::3], held.vectors[::3])[np.triu_indices(100, 1)]
    assert index.likeness(LOWERING) == pytest.approx(np.quantile(lowered, 0.99), abs=1e-6)


def test_of_too_few_people_nothing_is_known(new_index: NewIndex) -> None:
    index = filled(new_index, templates(drawn(LEAST_PERSONS - 1)))
    assert index.likeness(COSINE) is None
    index.add(templates(drawn(1, seed=5), first=900))
    assert index.likeness(COSINE) is not None
    assert new_index(D).likeness(COSINE) is None


def test_of_few_people_no_single_pair_decides(new_index: NewIndex) -> None:
    """Two relatives among twelve people; twelve people who are all alike."""

    def likeness(vectors: Vectors) -> float:
        found = filled(new_index, templates(vectors)).likeness(COSINE)
        assert found is not None
        return found

    people = drawn(12)
    assert likeness(people) == pytest.approx(expected(drawn(400)), abs=0.04)
    relatives = people.copy()
    relatives[1] = unit(people[:1] + 1.4 * people[1:2])[0]
    assert likeness(relatives) < expected(relatives) - 0.05
    assert likeness(unit(people + 0.5 * drawn(1, seed=3))) > likeness(people) + 0.1


@pytest.mark.parametrize("noise", [0.0, 0.6], ids=["the same photo", "another photo"])
def test_several_ids_of_one_person_count_once(new_index: NewIndex, noise: float) -> None:
    """They would be the most similar pairs, and a gallery of them would identify nobody."""
    people = drawn(60)
    once = filled(new_index, templates(people)).likeness(COSINE)
    assert once is not None
    again = unit(people[:50] + noise * drawn(50, seed=9))  # their similarity is about 0.86
    twice = filled(new_index, templates(np.concatenate([people, again])))
    assert twice.likeness(COSINE) == pytest.approx(once, abs=0.01)
    many = unit(np.repeat(people[:1], 200, axis=0) + noise * 0.5 * drawn(200, seed=9))
    assert filled(new_index, templates(many)).likeness(COSINE) is None, "one person"
    with_many = filled(new_index, templates(np.concatenate([people, many])))
    assert with_many.likeness(COSINE) == pytest.approx(once, abs=0.01)


@pytest.mark.parametrize(("people", "ids"), [(4, 3), (5, 2), (5, 5), (3, 10)])
def test_a_few_people_with_several_ids_are_too_few(
    new_index: NewIndex, people: int, ids: int
) -> None:
    """Most of their pairs are of one person: a threshold by these would identify nobody."""
    photos = np.repeat(drawn(people), ids, axis=0) + 0.6 * drawn(people * ids, seed=9)
    assert filled(new_index, templates(unit(photos))).likeness(COSINE) is None


def test_one_group_is_more_alike_than_a_mixed_gallery(new_index: NewIndex) -> None:
    centre = drawn(1, seed=3)
    alike = unit(drawn(200) + 0.5 * centre)
    mixed = unit(drawn(200) + 0.5 * centre * np.where(np.arange(200) % 2, 1, -1)[:, np.newaxis])
    one, other = (filled(new_index, templates(vectors)) for vectors in (alike, mixed))
    found = one.likeness(COSINE), other.likeness(COSINE)
    assert found[0] is not None
    assert found[1] is not None
    assert found[0] > found[1] + 0.01
    men = (np.arange(1, 201)[1::2] * 10).astype(np.int64)
    among = other.likeness(COSINE, men)
    assert among == pytest.approx(expected(mixed[1::2]), abs=1e-6)


def test_it_depends_on_the_templates_alone(new_index: NewIndex) -> None:
    """However they came, and however the index keeps them: processes agree."""
    held = templates(degraded(6_000), np.arange(6_000) % 2_000)
    at_once = filled(new_index, held)
    settle(at_once)
    assert at_once.state.shards
    in_parts = new_index(D)
    asked = []
    for start in reversed(range(0, 6_000, 500)):
        some = slice(start, start + 500)
        in_parts.add(Templates(held.keys[some], held.person_keys[some], held.vectors[some]))
        asked.append(in_parts.likeness(LOWERING))
    extra = templates(drawn(700, seed=8), first=50_000)
    in_parts.add(extra)
    in_parts.remove(extra.keys)
    assert in_parts.likeness(LOWERING) == at_once.likeness(LOWERING) == asked[-1]
    gone = held.keys[held.person_keys % 5 == 0]
    for index in (in_parts, at_once):
        index.remove(gone)
    left = held.person_keys % 5 != 0
    fresh = filled(
        new_index, Templates(held.keys[left], held.person_keys[left], held.vectors[left])
    )
    assert in_parts.likeness(LOWERING) == at_once.likeness(LOWERING) == fresh.likeness(LOWERING)


def test_a_large_gallery_is_not_looked_at_again_after_most_changes(
    new_index: NewIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = templates(drawn(20 * PERSONS))
    index = filled(new_index, held)
    first = index.likeness(COSINE)
    looked: list[int] = []
    real = certified.sample_of
    monkeypatch.setattr(
        certified,
        "sample_of",
        lambda *given: looked.append(1) or real(*given),  # type: ignore[func-returns-value]
    )
    for number in range(200):
        index.add(templates(drawn(1, seed=number), first=100_000 + number))
        index.likeness(COSINE)
    assert 1 <= len(looked) <= 30  # about one change in twenty
    index.remove(np.arange(100_000, 100_200))
    assert index.likeness(COSINE) == first


def test_a_person_with_very_many_templates_counts_once(new_index: NewIndex) -> None:
    crowd = unit(drawn(1) + 0.01 * drawn(9_000, seed=1))
    others = drawn(3_000, seed=2)
    persons = np.concatenate([np.full(9_000, 7), 100 + np.arange(3_000)])
    index = filled(new_index, templates(np.concatenate([crowd, others]), persons))
    found = index.likeness(COSINE)
    assert found == pytest.approx(expected(others[:PERSONS]), abs=0.02)


def test_a_filter_of_many_people_is_sampled(new_index: NewIndex) -> None:
    held = templates(drawn(8_000))
    index = filled(new_index, held)
    among = index.likeness(COSINE, np.sort(held.person_keys))
    assert among == pytest.approx(expected(held.vectors[:2_000]), abs=0.02)
    assert index.likeness(COSINE, np.arange(1, 9, dtype=np.int64)) is None
