"""The index as a whole: its answers are those of brute force, whatever it holds."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import IndexShape
from app.index.comparator import Comparator, Covering
from app.index.person_scores import effective_templates
from app.index.port import GallerySize, Templates
from tests.index.conftest import (
    SMALL,
    Vectors,
    assert_equal_to_brute_force,
    brute_force,
    same_answer,
    settle,
    templates,
    unit,
)

NewIndex = Callable[..., CertifiedIndex]
D = 64


def drawn(count: int, seed: int = 0, dimension: int = D) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((count, dimension)))


def clustered(count: int, seed: int = 0) -> Vectors:
    """Five hundred people, many photos each, in a narrow cone: every stranger looks a bit alike."""
    generator = np.random.default_rng(seed)
    centre = generator.standard_normal((1, D))
    people = generator.standard_normal((500, D)) + centre
    photos = people[generator.integers(0, 500, count)]
    return unit(photos + 0.3 * generator.standard_normal((count, D)))


def near_ties(count: int) -> Vectors:
    """All within 1e-4 of one direction: no estimate tells them apart."""
    base = drawn(1, seed=5)
    return unit(base + 1e-4 * np.random.default_rng(6).standard_normal((count, D)))


def all_equal(count: int) -> Vectors:
    return np.repeat(drawn(1, seed=8), count, axis=0)


def one_axis(count: int) -> Vectors:
    """Plus and minus the unit axes, over and over."""
    axes = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    return axes[np.arange(count) % len(axes)]


GALLERIES = {
    "random": drawn, "clustered": clustered, "near ties": near_ties, "all equal": all_equal,
    "one axis": one_axis,
}  # fmt: skip


@pytest.mark.parametrize("gallery", GALLERIES)
@pytest.mark.parametrize("top_k", [1, 6])
def test_answers_equal_brute_force(new_index: NewIndex, gallery: str, top_k: int) -> None:
    held = templates(GALLERIES[gallery](5_000))
    index = new_index(D)
    index.add(held)
    settle(index)
    assert index.state.shards, "the codes are what is tested here"
    strangers = drawn(20, seed=11)
    mated = unit(held.vectors[:20] + 0.05 * drawn(20, seed=12))
    for probes in (strangers, mated, held.vectors[:20], -held.vectors[:5]):
        assert_equal_to_brute_force(index, held, probes, top_k)
        for probe in probes[:5]:  # alone, which spreads its shards over the threads
            assert_equal_to_brute_force(index, held, probe[np.newaxis], top_k)


def test_several_templates_a_person(new_index: NewIndex) -> None:
    vectors = clustered(3_000)
    held = templates(vectors, np.arange(3_000) % 40)
    index = new_index(D)
    index.add(held)
    settle(index)
    assert_equal_to_brute_force(index, held, drawn(20, seed=1), 7)
    assert_equal_to_brute_force(index, held, vectors[:20], 40)


def degraded(count: int, seed: int = 0) -> Vectors:
    """A third of the rows lean towards one direction, as faces of bad photos do, and another third
    towards that of covered faces."""
    assert LOWERING.covering is not None
    place = np.arange(count)[:, np.newaxis] % 3
    bad = np.where(place == 0, 1.5, 0.0) * LOWERING.direction
    covered = np.where(place == 1, 0.5, 0.0) * LOWERING.covering.direction
    return unit(clustered(count, seed) + bad + covered)


LOWERING = Comparator(
    drawn(1, seed=21)[0], 1.5, Covering(3 * drawn(1, seed=22)[0], offset=0.2, weight=0.3)
)


@pytest.mark.parametrize("top_k", [1, 6])
def test_scores_that_are_lower_than_the_cosine(new_index: NewIndex, top_k: int) -> None:
    """A person's best template by the score need not be the best one by the cosine."""
    held = templates(degraded(5_000), np.arange(5_000) % 1_500)
    index = new_index(D)
    index.add(held)
    settle(index)
    assert index.state.shards, "the codes are what is tested here"
    bad, good = degraded(15, seed=7), drawn(10, seed=8)
    by_cosine = index.search_persons(bad, top_k)
    assert by_cosine != index.search_persons(bad, top_k, comparator=LOWERING)
    for probes in (bad, good, held.vectors[:20], bad[:1], good[:1]):
        assert_equal_to_brute_force(index, held, probes, top_k, LOWERING)
    allowed = np.arange(0, 1_500, 7)
    some = np.isin(held.person_keys, allowed)
    among = Templates(held.keys[some], held.person_keys[some], held.vectors[some])
    for probe, hits in zip(bad, index.search_persons(bad, top_k, allowed, LOWERING), strict=True):
        same_answer(hits, brute_force(among, probe, top_k, LOWERING))


def test_rows_whose_scores_are_lowered_are_not_all_scored(new_index: NewIndex) -> None:
    """Degraded faces have high cosines with a degraded probe, and low scores."""
    direction = drawn(1, seed=21, dimension=192)[0]
    people, rows = drawn(20, seed=7, dimension=192), drawn(10_000, dimension=192)
    rows[::4] = unit(rows[::4] + 3 * direction)
    rows[1:1_000:8] = unit(people[np.arange(125) % 20] + 0.5 * rows[1:1_000:8])
    probes = unit(people + direction)
    index = new_index(192, IndexShape(encode_at=10_000))
    index.add(templates(rows))
    settle(index)
    found = index.search_persons(probes, 6, comparator=Comparator(direction, 1.5))
    floors = np.array([hits[-1].similarity for hits in found])
    above = (probes @ rows.T >= floors[:, np.newaxis]).sum()  # by the cosine none is excluded
    assert index.costs.exhaustive == 0
    assert index.costs.scored < above / 10


def test_nobody_is_lost_behind_a_person_with_many_templates(new_index: NewIndex) -> None:
    crowd = unit(drawn(1) + 0.01 * drawn(2_900, seed=1))
    others = -drawn(100, seed=2)
    persons = np.concatenate([np.full(2_900, 7), 100 + np.arange(100)])
    held = templates(np.concatenate([crowd, others]), persons)
    index = new_index(D)
    index.add(held)
    settle(index)
    assert_equal_to_brute_force(index, held, crowd[:5], 20)


def test_more_persons_asked_for_than_there_are(new_index: NewIndex) -> None:
    held = templates(drawn(600), np.arange(600) % 3)
    index = new_index(D)
    index.add(held)
    settle(index)
    assert_equal_to_brute_force(index, held, drawn(3, seed=4), 10)


def test_a_mated_probe_is_not_searched_exhaustively(new_index: NewIndex) -> None:
    held = templates(drawn(3_000, dimension=512))
    index = new_index(512)
    index.add(held)
    settle(index)
    index.search_persons(held.vectors[:10], 1)
    assert index.costs.exhaustive == 0
    assert index.costs.scored < 10 * 1_000


@pytest.mark.parametrize("dimension", [3, 16, 130, 192, 512])
def test_any_dimension(new_index: NewIndex, dimension: int) -> None:
    held = templates(drawn(600, dimension=dimension))
    index = new_index(dimension)
    index.add(held)
    settle(index)
    assert_equal_to_brute_force(index, held, drawn(5, seed=1, dimension=dimension), 4)


def test_the_removed_never_answer_in_whatever_form_they_are(new_index: NewIndex) -> None:
    vectors = drawn(1_500)
    index = new_index(D)
    index.add(templates(vectors))
    settle(index)
    index.add(templates(drawn(100, seed=9), first=10_001))
    gone = np.arange(1, 1_200)
    index.remove(gone)
    assert index.extent() == GallerySize(401, 401, ((1.0, 401),))
    for when in ("before", "after"):
        hits = index.search_persons(vectors[:1_199:100], 3)
        assert not any(hit.template_key < 1_200 for row in hits for hit in row), when
        settle(index)
    assert sum(len(shard.rows) for shard in index.state.shards) < 600
    assert not any(np.isin(shard.rows.keys, gone).any() for shard in index.state.shards)


def test_removed_vectors_are_forgotten_at_once(new_index: NewIndex) -> None:
    vectors = drawn(400)
    index = new_index(D)
    index.add(templates(vectors[:300]))
    settle(index)
    index.add(templates(vectors[300:], first=301))
    index.remove(np.array([5, 350]))
    shard, write_buffer = index.state.shards[0].rows, index.state.write_buffer.rows
    assert not shard.vectors[shard.find(np.array([5]))].any()
    assert not write_buffer.vectors[write_buffer.keys == 350].any()


def test_adding_again_changes_nothing(new_index: NewIndex) -> None:
    index = new_index(D)
    index.add(templates(drawn(300)))
    settle(index)
    index.add(templates(-drawn(300)))
    assert index.size == 300
    (hits,) = index.search_persons(drawn(300)[:1], 1)
    assert hits[0].similarity == pytest.approx(1)


def test_only_the_allowed_persons(new_index: NewIndex) -> None:
    held = templates(drawn(1_000), np.arange(1_000) % 100)
    index = new_index(D)
    index.add(held)
    settle(index)
    allowed = np.array([3, 50, 99, 5_000])
    kept = np.isin(held.person_keys, allowed)
    some = Templates(held.keys[kept], held.person_keys[kept], held.vectors[kept])
    probe = drawn(1, seed=3)
    (hits,) = index.search_persons(probe, 10, allowed)
    (expected,) = (new_index(D).search_persons(probe, 10, allowed),)
    assert expected == [[]]
    alone = new_index(D)
    alone.add(some)
    assert [h.person_key for h in hits] == [
        h.person_key for h in alone.search_persons(probe, 10)[0]
    ]
    assert index.extent(allowed) == alone.extent()
    assert (alone.extent().persons, alone.extent().templates) == (3, 30)
    assert index.search_persons(probe, 3, allowed_persons=np.empty(0, np.int64)) == [[]]


def test_nothing_to_search(new_index: NewIndex) -> None:
    index = new_index(D)
    assert index.search_persons(np.empty((0, D), np.float32), 3) == []
    assert index.search_persons(drawn(2), 3) == [[], []]
    assert index.extent() == GallerySize(0, 0)


def test_extent_counts_people_and_templates_as_they_come_and_go(new_index: NewIndex) -> None:
    index = new_index(D)
    vectors = drawn(4)
    index.add(Templates(np.array([1, 2, 3, 4]), np.array([7, 7, 8, 9]), vectors))
    two = effective_templates(vectors[:2])
    assert_extent(index.extent(), 4, [1, 1, two])
    assert_extent(index.extent(np.array([7, 9, 100])), 3, [1, two])
    index.remove(np.array([1, 3, 99]))
    assert_extent(index.extent(), 2, [1, 1])
    index.remove(np.array([1, 3]))
    assert_extent(index.extent(), 2, [1, 1])
    assert index.extent(np.empty(0, np.int64)) == GallerySize(0, 0)


def assert_extent(size: GallerySize, templates: int, effective: list[float]) -> None:
    assert (size.persons, size.templates) == (len(effective), templates)
    stated = [n for n, count in size.spread for _ in range(count)]
    assert stated == pytest.approx(effective, rel=0.011)


@pytest.mark.parametrize("encrypted", [False, True])
def test_near_copies_count_as_what_they_add(new_index: NewIndex, encrypted: bool) -> None:
    index = new_index(D)
    copies = drawn(1) + 0.002 * np.random.default_rng(5).standard_normal((2_000, D))
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    everybody = np.concatenate([copies.astype(np.float32), drawn(50, seed=6)])
    persons = np.concatenate([np.zeros(2_000, np.int64), np.arange(1, 51)])
    for start in range(0, 2_050, 205):  # some at a time, as they come
        some = slice(start, start + 205)
        index.add(Templates(np.arange(2_050)[some], persons[some], everybody[some]))
        if encrypted:
            settle(index)
    assert_extent(index.extent(), 2_050, [*[1.0] * 50, effective_templates(everybody[:2_000])])
    assert index.extent().spread[-1][0] < 1.5


def test_searches_go_on_while_rows_are_encoded_merged_and_removed(new_index: NewIndex) -> None:
    index = new_index(D, IndexShape(encode_at=128, merge_at=3))
    stays = drawn(1, seed=99)
    index.add(templates(stays, first=10**6))
    stop, failures = threading.Event(), list[object]()

    def search() -> None:
        while not stop.is_set():
            (hits,) = index.search_persons(stays, 2)
            if hits[0].template_key != 10**6:
                failures.append(hits)

    def run_maintenance() -> None:
        while not stop.is_set():
            index.maintain()

    others = [threading.Thread(target=work) for work in (search, search, run_maintenance)]
    for thread in others:
        thread.start()
    for batch in range(30):
        index.add(templates(drawn(60, seed=batch), first=1 + 60 * batch))
        gone = np.arange(1 + 60 * batch, 31 + 60 * batch)
        index.remove(gone)
        (hits,) = index.search_persons(drawn(60, seed=batch)[:1], 1)
        if hits[0].template_key in gone:
            failures.append("came back")
    stop.set()
    for thread in others:
        thread.join()
    settle(index)
    assert failures == []
    assert index.size == 901
    assert SMALL.large == 1_024


@pytest.mark.slow
def test_ten_thousand_probes_of_random_directions(new_index: NewIndex) -> None:
    """As many templates and probes as a test can compare with everything."""
    held = templates(drawn(40_000, dimension=192))
    index = new_index(192, IndexShape(encode_at=4_096, merge_at=4))
    index.add(held)
    settle(index)
    probes = drawn(10_000, seed=3, dimension=192)
    for start in range(0, len(probes), 500):
        some = probes[start : start + 500]
        similarities = np.sort(some @ held.vectors.T, axis=1)[:, ::-1][:, :5]
        found = [[h.similarity for h in row] for row in index.search_persons(some, 5)]
        assert np.allclose(found, similarities, atol=3e-6)
