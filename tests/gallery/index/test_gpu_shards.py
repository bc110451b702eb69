"""Half precision proposes: certain where it can be, the CPU's answer where it cannot.

FAISS's half-precision index on the CPU stands in for the one on a GPU; the real one runs where
there is a device.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
import pytest

from app.errors import DeviceError
from app.gallery.index.certified import CertifiedIndex
from app.gallery.index.gpu import ROUNDING, GpuShards, cuda_flat
from tests.gallery.index.conftest import SMALL, assert_equal_to_brute_force, settle, templates
from tests.gallery.index.test_certified import GALLERIES, D, drawn


def half_precision(dimension: int) -> Any:
    kind = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexScalarQuantizer(dimension, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(np.eye(dimension, dtype=np.float32))
    return index


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
