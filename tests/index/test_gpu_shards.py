"""Half precision proposes: certain where it can be, the CPU's answer where it cannot.

FAISS's half-precision index on the CPU stands in for the one on a GPU; the real one runs where
there is a device.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from app.errors import DeviceError
from app.index.certified.index import CertifiedIndex
from app.index.gpu import ROUNDING, GpuShards, cuda_flat
from app.index.port import Templates
from tests.index.conftest import (
    SMALL,
    assert_equal_to_brute_force,
    half_precision,
    settle,
    templates,
)
from tests.index.test_certified import GALLERIES, LOWERING, D, degraded, drawn


@pytest.fixture
def gpu() -> Iterator[GpuShards]:
    shards = GpuShards(half_precision)
    yield shards
    shards.close()


@pytest.mark.parametrize("gallery", GALLERIES)
def test_answers_equal_brute_force(
    threads: ThreadPoolExecutor, gpu: GpuShards, gallery: str
) -> None:
    held = templates(GALLERIES[gallery](3_000))
    index = CertifiedIndex(D, threads, SMALL, gpu)
    index.add(held)
    settle(index)
    for probes in (drawn(20, seed=11), held.vectors[:20], drawn(1, seed=12)):
        assert_equal_to_brute_force(index, held, probes, 6)
    index.remove(held.keys[:1_500])
    settle(index)
    for row in index.search_persons(held.vectors[:20], 3):
        assert not any(hit.template_key <= 1_500 for hit in row)


def test_scores_that_are_lower_than_the_cosine(threads: ThreadPoolExecutor, gpu: GpuShards) -> None:
    held = templates(degraded(3_000), np.arange(3_000) % 900)
    index = CertifiedIndex(D, threads, SMALL, gpu)
    index.add(held)
    settle(index)
    for probes in (degraded(30, seed=7), drawn(1, seed=12)):
        assert_equal_to_brute_force(index, held, probes, 6, LOWERING)


def test_the_removed_leave_the_device_with_the_next_upkeep(
    threads: ThreadPoolExecutor, gpu: GpuShards
) -> None:
    held = templates(drawn(600))
    index = CertifiedIndex(D, threads, SMALL, gpu)
    index.add(held)
    settle(index)
    index.search_persons(held.vectors[:1], 1)
    (shard,) = index.state.shards
    before = gpu._held[id(shard)].flat
    assert before.reconstruct(6).any()
    index.remove(np.array([7]))
    settle(index)
    assert_equal_to_brute_force(index, templates_without(held, 7), held.vectors[:20], 3)
    assert not gpu._held[id(shard)].flat.reconstruct(6).any()
    assert gpu._held[id(shard)].flat.reconstruct(7).any()
    index.remove(held.keys[:300])
    settle(index)
    assert id(shard) not in gpu._held, "what was rewritten is not searched any more"
    index.search_persons(held.vectors[:1], 1)
    index.close()
    assert not gpu._held


def templates_without(held: Templates, key: int) -> Templates:
    kept = held.keys != key
    return Templates(held.keys[kept], held.person_keys[kept], held.vectors[kept])


def test_rounding_is_bounded() -> None:
    vectors, probes = drawn(20_000), drawn(50, seed=2)
    index = half_precision(D)
    index.add(vectors)
    estimates, rows = index.search(probes.astype(np.float16).astype(np.float32), 100)
    exact = np.einsum("pkd,pd->pk", vectors[rows], probes)
    assert np.abs(estimates - exact).max() < ROUNDING


@pytest.mark.gpu
def test_on_a_device(threads: ThreadPoolExecutor) -> None:
    gpu = GpuShards(cuda_flat())
    held = templates(drawn(5_000))
    index = CertifiedIndex(D, threads, SMALL, gpu)
    index.add(held)
    settle(index)
    assert_equal_to_brute_force(index, held, drawn(50, seed=3), 6)
    gpu.close()


def test_a_device_that_is_not_there_is_said() -> None:
    if hasattr(faiss, "GpuIndexFlatIP") and faiss.get_num_gpus():
        pytest.skip("there is one")
    with pytest.raises(DeviceError, match="LIKENESS_INDEX_DEVICE"):
        cuda_flat()
