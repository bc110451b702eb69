"""The scans of one shard: where the first one begins changes no answer, only what it costs."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from app.index.certified.codes import RowNumbers, bound_of
from app.index.certified.index import CertifiedIndex
from app.index.certified.persons import BestPersons
from app.index.certified.rows import IndexShape
from app.index.certified.search import ProbeSearch
from app.index.certified.shards import OUTLIER_SHARE, FirstRadius, Shard
from app.index.comparator import COSINE, Comparator
from app.index.port import SearchCounts
from tests.index.conftest import Vectors, brute_force, same_answer, settle, templates, unit

D, COUNT = 64, 3_000


@pytest.fixture
def held() -> Vectors:
    return unit(np.random.default_rng(0).standard_normal((COUNT, D)))


@pytest.fixture
def index(new_index: Callable[..., CertifiedIndex], held: Vectors) -> CertifiedIndex:
    """One shard, and nothing in the write buffer."""
    index = new_index(D, IndexShape(encode_at=COUNT))
    index.add(templates(held))
    settle(index)
    return index


@pytest.fixture
def shard(index: CertifiedIndex) -> Shard:
    (shard,) = index.state.shards
    return shard


def scan(index: CertifiedIndex, shard: Shard, probe: Vectors) -> tuple[BestPersons, SearchCounts]:
    """The five persons that are most similar to a probe, and what it cost to find them."""
    assert index.quantiser is not None
    best, costs = BestPersons(5), SearchCounts()
    ProbeSearch(COSINE.probe(probe), best, index.quantiser, bound_of(D), costs).cover(shard)
    return best, costs


@pytest.mark.parametrize("radius", [-0.9, 0.0, 0.3, 0.99])
def test_the_first_radius_changes_no_answer(
    index: CertifiedIndex, shard: Shard, held: Vectors, radius: float
) -> None:
    for probe in unit(np.random.default_rng(1).standard_normal((20, D))):
        best, _ = scan(index, replace(shard, first_radius=FirstRadius(radius)), probe)
        same_answer(best.hits(), brute_force(templates(held), probe, 5))


@pytest.mark.parametrize("start", [0.0, 0.9])
def test_the_first_radius_becomes_one_that_few_searches_need_less_than(start: float) -> None:
    radius, too_large = FirstRadius(start), 0
    for number, needed in enumerate(np.random.default_rng(3).normal(0.3, 0.05, 6_000)):
        too_large += number >= 1_000 and needed < radius.radius
        radius.note(needed)
    assert 0.03 < too_large / 5_000 < 0.07


def test_the_first_radius_leaves_half_of_the_rows_out() -> None:
    radius = FirstRadius(0.01)
    radius.note(-0.2)
    assert radius.radius == 0


def test_a_search_lowers_a_first_radius_that_was_too_large(
    index: CertifiedIndex, shard: Shard, held: Vectors
) -> None:
    shard = replace(shard, first_radius=FirstRadius(0.99))
    for probe in held[:20]:
        scan(index, shard, probe)
    assert shard.first_radius.radius < 0.8  # in some rotations a few searches need less than it


def test_probes_whose_scores_are_lowered_have_a_radius_of_their_own() -> None:
    radius = FirstRadius(0.3)
    for _ in range(50):
        radius.note(needed=0.05, lowered=1.2)
    assert radius.of(lowered=1.2) < 0.1
    assert radius.of(lowered=0.1) == radius.radius == 0.3


def test_a_search_for_a_degraded_face_leaves_the_radius_of_others(
    index: CertifiedIndex, shard: Shard, held: Vectors
) -> None:
    """Its floor is lower, because all that resembles it is lowered."""
    assert index.quantiser is not None
    shard = replace(shard, first_radius=FirstRadius(0.99))
    for probe in held[:20]:
        comparator = Comparator(direction=probe, weight=0.9)
        degraded = comparator.probe(probe)
        ProbeSearch(degraded, BestPersons(5), index.quantiser, bound_of(D), SearchCounts()).cover(
            shard
        )
    assert shard.first_radius.radius == 0.99
    assert shard.first_radius.of(degraded.lowered) < 0.9


class RecordedSearch(ProbeSearch):
    """Records which rows it scores."""

    scored: ClassVar[list[RowNumbers]] = []

    def score(self, shard: Shard, rows: RowNumbers) -> None:
        self.scored.append(rows)
        super().score(shard, rows)


def test_a_second_scan_scores_no_row_again(index: CertifiedIndex, shard: Shard) -> None:
    assert index.quantiser is not None
    for vector in unit(np.random.default_rng(1).standard_normal((20, D))):
        shard = replace(shard, outliers=shard.outliers.first(0), first_radius=FirstRadius(0.2))
        RecordedSearch.scored.clear()
        probe, costs = COSINE.probe(vector), SearchCounts()
        RecordedSearch(probe, BestPersons(5), index.quantiser, bound_of(D), costs).cover(shard)
        assert costs.widened == 1
        rows = np.concatenate(RecordedSearch.scored)
        assert len(np.unique(rows)) == len(rows)


def test_a_low_floor_does_not_make_the_first_scan_return_most_rows(
    index: CertifiedIndex, shard: Shard
) -> None:
    found: list[int] = []
    within = shard.codes.scan.within

    def counted(*arguments: object) -> object:
        rows, estimates = within(*arguments)  # type: ignore[arg-type]
        found.append(len(rows))
        return rows, estimates

    shard.codes.scan.within = counted  # type: ignore[assignment]
    best = BestPersons(1)
    best.offer(np.array([0.01], np.float32), np.array([10**9]), np.array([10**9]))
    assert index.quantiser is not None
    probe = COSINE.probe(unit(np.random.default_rng(2).standard_normal((1, D)))[0])
    ProbeSearch(probe, best, index.quantiser, bound_of(D), SearchCounts()).cover(
        replace(shard, outliers=shard.outliers.first(0))
    )
    assert found[0] < COUNT / 2


def test_rows_whose_codes_say_little_are_always_scored(
    index: CertifiedIndex, shard: Shard, held: Vectors
) -> None:
    assert 0 < len(shard.outliers) <= 2 * OUTLIER_SHARE * COUNT
    outliers = shard.rows.find(shard.outliers.keys)
    usual = np.setdiff1d(np.arange(COUNT), outliers)
    assert shard.codes.projection[usual].min() >= shard.least_projection
    assert shard.codes.residual[usual].max() <= shard.most_residual
    row = int(outliers[0])
    shard.codes.scan.forget(np.array([row]))  # so that no scan finds it
    best, _ = scan(index, shard, held[row])
    assert best.hits()[0].template_key == shard.rows.keys[row]


def test_a_removed_row_is_erased_from_the_copy_of_outliers(
    index: CertifiedIndex, shard: Shard, held: Vectors
) -> None:
    key = int(shard.outliers.keys[0])
    index.remove(np.array([key]))
    assert not shard.outliers.vectors[0].any()
    best, _ = scan(index, shard, held[key - 1])
    assert key not in [hit.template_key for hit in best.hits()]


def test_the_copy_of_outliers_counts_as_memory(shard: Shard) -> None:
    without = replace(shard, outliers=shard.outliers.first(0))
    assert shard.memory - without.memory == shard.outliers.memory > shard.outliers.vectors.nbytes
