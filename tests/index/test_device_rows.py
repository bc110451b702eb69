"""Rows on a device, and the search over them: on a CUDA device (marked `gpu`), and the same tests
with fewer rows on its stand-in, so that none of them fails on a card by its own mistake."""
# ruff: noqa: T201

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.index.certified.index import CertifiedIndex
from app.index.certified.search import ThreadScanner
from app.index.device_rows import SUMMING, CudaDevice, DeviceGalleries, Half, RowDevice
from app.index.factory import GPU_SHAPE
from app.index.gpu import DeviceScanner
from app.inference.device_memory import DeviceOutOfMemory
from app.types import FloatArray
from tests.index.conftest import (
    HostDevice,
    assert_equal_to_brute_force,
    settle,
    templates,
)
from tests.index.test_certified import drawn
from tests.index.test_gpu import new_index, without


@pytest.fixture(scope="module")
def cuda() -> Iterator[CudaDevice]:
    made = CudaDevice()
    yield made
    made.close()


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> RowDevice:
    if request.param == "cuda":
        found: CudaDevice = request.getfixturevalue("cuda")
        return found
    made = HostDevice()
    made.most_rows = 1 << 30
    return made


def on_card(device: RowDevice) -> bool:
    return isinstance(device, CudaDevice)


def halves_of(count: int, seed: int = 1, dimension: int = 512) -> Half:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16)


def median_ms(work: object, repeats: int = 20) -> float:
    assert callable(work)
    work()
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return 1000 * float(np.median(spent))


def test_on_a_device(threads: ThreadPoolExecutor, device: RowDevice) -> None:
    galleries = DeviceGalleries(device)
    held = templates(drawn(5_000 if on_card(device) else 2_500))
    index = new_index(galleries, threads)
    index.add(held)
    settle(index)
    assert_equal_to_brute_force(index, held, drawn(50, seed=3), 6)
    index.remove(held.keys[:2_000])
    settle(index)
    assert_equal_to_brute_force(index, without(held, held.keys[:2_000]), held.vectors[:50], 6)
    print("searches left to the CPU:", index.costs.fallbacks)
    index.close()


@pytest.mark.parametrize("most", [1, 64, 512, 4_096, pytest.param(16_384, marks=pytest.mark.slow)])
def test_a_device_proposes_the_nearest(device: RowDevice, most: int) -> None:
    """And its sums are off by less than `SUMMING`."""
    count = 50_000 if on_card(device) else most + 500
    vectors = halves_of(count)
    rows = device.new_rows(count + 10_000, 512)
    rows.write(0, vectors)
    probes = halves_of(5, seed=2)
    estimates, numbers = rows.search(probes, count, most)
    exact: FloatArray = probes.astype(np.float32) @ vectors.astype(np.float32).T
    found = np.take_along_axis(exact, numbers, axis=1)
    off = np.abs(found - estimates).max()
    print(f"{most} rows: sums off by {off:.2e}, allowed {SUMMING:.2e}")
    assert off < SUMMING
    assert np.abs(np.sort(found)[:, ::-1] - -np.sort(-exact)[:, :most]).max() < SUMMING
    rows.free()


def test_a_row_of_the_device_is_zeroed(device: RowDevice) -> None:
    vectors = halves_of(1_000)
    rows = device.new_rows(1_000, 512)
    rows.write(0, vectors)
    rows.zero(np.array([3, 4, 5, 17]))
    estimates, numbers = rows.search(vectors[[4]], 1_000, 1_000)
    assert estimates[0][np.isin(numbers[0], [3, 4, 5, 17])].tolist() == [0.0] * 4
    print("a row zeroed in", median_ms(lambda: rows.zero(np.array([7]))), "ms")
    rows.free()


def test_too_much_for_a_device_is_said(device: RowDevice) -> None:
    with pytest.raises(DeviceOutOfMemory):
        device.new_rows(1 << 40, 512)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1_000_000, 10_000_000])
def test_time_of_a_scan(cuda: CudaDevice, count: int) -> None:
    rows = cuda.new_rows(count, 512)
    part = halves_of(200_000)
    others = np.roll(part, 1, axis=1)
    for start in range(0, count, len(part)):
        rows.write(start, others if start else part)
    for number, most in ((1, 64), (1, 512), (1, 4_096), (1, 16_384), (8, 64), (64, 64)):
        probes = part[:number]
        spent = median_ms(lambda n=probes, k=most: rows.search(n, count, k), 10)  # type: ignore[misc]
        _, numbers = rows.search(probes, count, most)
        assert numbers[:, 0].tolist() == list(range(number))
        print(f"{count:,} rows, {number} probes, nearest {most}: {spent:.2f} ms")
    rows.free()


@pytest.mark.parametrize(
    "device",
    [pytest.param("stand-in", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)],
    indirect=True,
)
def test_time_of_a_search(threads: ThreadPoolExecutor, device: RowDevice) -> None:
    """From a probe to persons, exact scores included; the CPU's index beside it."""
    count, asked = (262_144, 200) if on_card(device) else (2_500, 4)
    galleries = DeviceGalleries(device)
    held = templates(halves_of(count).astype(np.float32))
    cpu = CertifiedIndex(512, threads, GPU_SHAPE)
    cpu.add(held)
    settle(cpu)
    scanner = DeviceScanner(galleries, 512, ThreadScanner(threads))
    index = CertifiedIndex(512, threads, GPU_SHAPE, scanner)
    index.restore(cpu.quantiser, cpu.state.shards, cpu.parts()[-1])
    probes = held.vectors[:asked] + 0.3 * halves_of(asked, seed=5).astype(np.float32)
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    for name, one in (("CPU", cpu), ("GPU", index)):
        turn = iter(range(10_000))
        for top in (1, 6):
            spent = median_ms(
                lambda i=one, k=top, t=turn: i.search_persons(probes[[next(t) % asked]], k),
                asked // 2,
            )
            print(f"{name}: top {top} of {count:,} rows: {spent:.2f} ms; {one.costs}")
    for hits, other in zip(
        index.search_persons(probes, 6), cpu.search_persons(probes, 6), strict=True
    ):
        assert [hit.person_key for hit in hits] == [hit.person_key for hit in other]
    started = time.perf_counter()
    with ThreadPoolExecutor(16) as callers:
        list(callers.map(lambda i: index.search_persons(probes[[i % asked]], 1), range(2 * asked)))
    rate = 2 * asked / (time.perf_counter() - started)
    print(f"GPU: {rate:.0f} searches a second by 16 threads")
    index.close()
