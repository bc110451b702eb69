"""Half precision proposes: certain where it can be, the CPU's answer where it cannot.

The same calls over FAISS on the CPU stand in for a device; the real one runs where there is one.
"""

import importlib.util
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.errors import DeviceError
from app.index import gpu as engine
from app.index.certified.index import CertifiedIndex
from app.index.certified.search import ThreadScanner
from app.index.comparator import Comparator
from app.index.device_rows import (
    IDLE_S,
    SUMMING,
    CudaDevice,
    DeviceGalleries,
    RowDevice,
    bytes_of_a_process,
)
from app.index.gpu import DeviceScanner
from app.index.port import Templates
from app.inference.device_memory import MemoryOfDevice
from tests.index.conftest import (
    SMALL,
    HostDevice,
    HostRows,
    assert_equal_to_brute_force,
    settle,
    templates,
)
from tests.index.test_certified import GALLERIES, LOWERING, D, degraded, drawn
from tests.waiting import PATIENCE_S, until

GIB = 1 << 30


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture
def galleries(device: RowDevice) -> Iterator[DeviceGalleries]:
    made = DeviceGalleries(device)
    yield made
    made.close()


def new_index(
    galleries: DeviceGalleries, threads: ThreadPoolExecutor, dimension: int = D
) -> CertifiedIndex:
    scanner = DeviceScanner(galleries, dimension, ThreadScanner(threads))
    return CertifiedIndex(dimension, threads, SMALL, scanner)


def scanner_of(index: CertifiedIndex) -> DeviceScanner:
    assert isinstance(index._scanner, DeviceScanner)
    return index._scanner


def rows_of(index: CertifiedIndex) -> HostRows:
    rows = scanner_of(index)._rows
    assert isinstance(rows, HostRows)
    return rows


def without(held: Templates, keys: np.ndarray) -> Templates:
    kept = ~np.isin(held.keys, keys)
    return Templates(held.keys[kept], held.person_keys[kept], held.vectors[kept])


@pytest.mark.parametrize("gallery", GALLERIES)
def test_answers_equal_brute_force(
    threads: ThreadPoolExecutor, galleries: DeviceGalleries, gallery: str
) -> None:
    held = templates(GALLERIES[gallery](3_000))
    index = new_index(galleries, threads)
    index.add(held)
    settle(index)
    for probes in (drawn(20, seed=11), held.vectors[:20], drawn(1, seed=12)):
        assert_equal_to_brute_force(index, held, probes, 6)
    index.remove(held.keys[:1_500])
    rest = without(held, held.keys[:1_500])
    assert_equal_to_brute_force(index, rest, held.vectors[:20], 3)
    settle(index)
    assert_equal_to_brute_force(index, rest, held.vectors[:20], 3)
    assert index.costs.fallbacks == 0 or gallery not in {"random", "faces"}


def test_scores_that_are_lower_than_the_cosine(
    threads: ThreadPoolExecutor, galleries: DeviceGalleries
) -> None:
    held = templates(degraded(3_000), np.arange(3_000) % 900)
    index = new_index(galleries, threads)
    index.add(held)
    settle(index)
    for probes in (degraded(30, seed=7), drawn(1, seed=12)):
        assert_equal_to_brute_force(index, held, probes, 6, LOWERING)


def test_the_removed_are_zeroed_before_the_removal_returns(
    threads: ThreadPoolExecutor, galleries: DeviceGalleries
) -> None:
    held = templates(drawn(600))
    index = new_index(galleries, threads)
    index.add(held)
    settle(index)
    index.search_persons(held.vectors[:1], 1)
    (shard,) = index.state.shards
    (start,) = scanner_of(index)._starts.values()
    rows = rows_of(index)
    place = start + int(shard.rows.find(np.array([7]))[0])
    assert rows.values[place].any()
    index.remove(np.array([7]))
    assert not rows.values[place].any()
    assert rows.values[place + 1].any()
    assert_equal_to_brute_force(index, without(held, np.array([7])), held.vectors[:20], 3)


def test_what_was_rewritten_leaves_the_device_and_its_place_is_used_again(
    threads: ThreadPoolExecutor, galleries: DeviceGalleries
) -> None:
    """Shards merge and wear out again and again: the rows on the device stay near those held."""
    index = new_index(galleries, threads)
    held = templates(drawn(256))
    index.add(held)
    settle(index)
    index.search_persons(held.vectors[:1], 1)
    for turn in range(1, 30):
        more = templates(drawn(256, seed=turn), first=turn * 256 + 1)
        index.add(more)
        index.remove(more.keys[::3])
        settle(index)
        index.search_persons(more.vectors[:3], 1)
    scanner = scanner_of(index)
    shards = index.state.shards
    assert set(scanner._starts) == set(shards)
    live = sum(len(shard.rows) for shard in shards)
    assert live <= scanner._end <= 2 * live
    used = np.zeros(scanner._end, np.bool_)
    for shard, start in scanner._starts.items():
        assert not used[start : start + len(shard.rows)].any(), "two shards in one place"
        used[start : start + len(shard.rows)] = True
    assert not rows_of(index).values[: scanner._end][~used].any(), "gaps are zero"
    index.close()
    assert scanner.bytes == 0


def test_a_search_that_began_earlier_finds_what_was_rewritten_meanwhile(
    threads: ThreadPoolExecutor, galleries: DeviceGalleries
) -> None:
    held = templates(drawn(700))
    index = new_index(galleries, threads)
    index.add(held)
    settle(index)
    before = index.state
    index.search_persons(held.vectors[:1], 1)
    index.remove(held.keys[300:])
    settle(index)
    assert set(index.state.shards).isdisjoint(before.shards)
    index._state = before
    assert_equal_to_brute_force(index, without(held, held.keys[300:]), held.vectors[:20], 3)
    assert scanner_of(index)._starts.keys().isdisjoint(before.shards)


def test_concurrent_probes_share_a_scan(
    threads: ThreadPoolExecutor, galleries: DeviceGalleries, device: HostDevice
) -> None:
    held = templates(drawn(3_000))
    index = new_index(galleries, threads)
    index.add(held)
    settle(index)
    index.search_persons(held.vectors[:1], 1)
    device.may_search.clear()
    before = len(device.searched)
    with ThreadPoolExecutor(8) as callers:
        first = callers.submit(index.search_persons, held.vectors[:1], 1)
        until(lambda: device.searching)
        rest = [callers.submit(index.search_persons, held.vectors[n : n + 2], 1) for n in range(7)]
        until(lambda: len(scanner_of(index)._waiting) == 7)
        device.may_search.set()
        assert first.result(PATIENCE_S)[0][0].template_key == 1
        for n, answer in enumerate(rest):
            keys = [hits[0].template_key for hits in answer.result(PATIENCE_S)]
            assert keys == [n + 1, n + 2]
    assert device.searched[before] == 1
    assert 14 in device.searched[before:]


def test_two_collections_stay_on_the_device(
    threads: ThreadPoolExecutor, galleries: DeviceGalleries, device: HostDevice
) -> None:
    indexes, held = [], [templates(drawn(600, seed=n)) for n in (1, 2)]
    for templates_ in held:
        index = new_index(galleries, threads)
        index.add(templates_)
        settle(index)
        index.search_persons(templates_.vectors[:1], 1)
        indexes.append(index)
    written = device.written
    for _ in range(3):
        for index, templates_ in zip(indexes, held, strict=True):
            assert_equal_to_brute_force(index, templates_, templates_.vectors[:3], 2)
    assert device.written == written


def test_an_idle_index_makes_room_and_a_busy_one_does_not(
    threads: ThreadPoolExecutor,
    galleries: DeviceGalleries,
    device: HostDevice,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(engine, "FIRST_CAPACITY", 600)
    device.max_bytes = 2 * D * 1_300
    one, other = (new_index(galleries, threads) for _ in range(2))
    held = templates(drawn(600))
    for index in (one, other):
        index.add(held)
        settle(index)
    index.search_persons(held.vectors[:1], 1)
    one.search_persons(held.vectors[:1], 1)
    assert scanner_of(one).bytes + scanner_of(other).bytes <= device.max_bytes
    holder, refused = (one, other) if scanner_of(one).bytes else (other, one)
    with caplog.at_level("INFO"):
        assert_equal_to_brute_force(refused, held, held.vectors[:3], 2)
    assert refused.costs.fallbacks > 0
    assert scanner_of(refused).bytes == 0
    scanner_of(holder).used_at -= IDLE_S + 1
    scanner_of(refused)._failed_at -= engine.RETRY_S + 1
    with caplog.at_level("INFO"):
        assert_equal_to_brute_force(refused, held, held.vectors[:3], 2)
    assert scanner_of(refused).bytes > 0
    assert scanner_of(holder).bytes == 0
    messages = [record.message for record in caplog.records]
    assert messages.count("the GPU searches an index again") == 1


def test_a_device_that_fails_leaves_the_search_to_the_cpu(
    threads: ThreadPoolExecutor,
    galleries: DeviceGalleries,
    device: HostDevice,
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = templates(drawn(600))
    index = new_index(galleries, threads)
    index.add(held)
    settle(index)
    device.fault = DeviceError("CUDA failure 700: an illegal memory access.")
    with caplog.at_level("WARNING"):
        for _ in range(3):
            assert_equal_to_brute_force(index, held, held.vectors[:20], 3)
    warnings = [one for one in caplog.records if "the CPU does" in one.message]
    assert len(warnings) == 1
    assert "illegal memory access" in warnings[0].fields["reason"]  # type: ignore[attr-defined]
    assert index.costs.fallbacks == 60
    index.remove(held.keys[:10])  # and a removal does not fail
    device.fault = None
    scanner_of(index)._failed_at -= engine.RETRY_S + 1
    assert_equal_to_brute_force(index, without(held, held.keys[:10]), held.vectors[:20], 3)
    assert index.costs.fallbacks == 60


def test_a_full_device_is_filled_no_further_than_it_must(
    threads: ThreadPoolExecutor,
    galleries: DeviceGalleries,
    device: HostDevice,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No room for twice the rows: exactly as many."""
    monkeypatch.setattr(engine, "FIRST_CAPACITY", 1)
    device.most_rows = 1_000
    held = templates(drawn(600))
    index = new_index(galleries, threads)
    index.add(held)
    settle(index)
    assert_equal_to_brute_force(index, held, held.vectors[:20], 3)
    assert rows_of(index).capacity == sum(len(shard.rows) for shard in index.state.shards)
    assert index.costs.fallbacks == 0


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_copies_of_all_processes_fit_while_one_is_replaced(processes: int) -> None:
    """However much of the device the others have taken already."""
    for free in (0, 70 * GIB, 80 * GIB):
        mine = bytes_of_a_process(MemoryOfDevice(free, 80 * GIB), processes)
        assert 0.75 * 80 * GIB < (processes + 1) * mine <= 0.8 * 80 * GIB
    assert bytes_of_a_process(MemoryOfDevice(50 * GIB, 80 * GIB), 1) == 40 * GIB


def test_the_measured_bound_holds() -> None:
    """For unit vectors, and for some whose numbers are subnormal in half precision."""
    vectors = np.concatenate([drawn(5_000), drawn(50, seed=3) ** 9])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    probes = drawn(50, seed=2)
    rows = HostRows(HostDevice(), len(vectors), D)
    halves = vectors.astype(np.float16)
    rows.write(0, halves)
    estimates, numbers = rows.search(probes.astype(np.float16), len(vectors), 100)
    exact = np.einsum("pkd,pd->pk", vectors[numbers].astype(np.float64), probes.astype(np.float64))
    rounding = np.linalg.norm(vectors - halves.astype(np.float32), axis=1).max()
    lost = np.linalg.norm(probes - probes.astype(np.float16).astype(np.float32), axis=1)
    bound = lost * (1 + rounding) + rounding + SUMMING
    assert (np.abs(estimates - exact) < bound[:, np.newaxis]).all()


def test_removals_while_rows_are_copied(
    threads: ThreadPoolExecutor, galleries: DeviceGalleries
) -> None:
    """Searches, additions and removals at once: nothing removed is left on the device."""
    index = new_index(galleries, threads)
    held = templates(drawn(4_000))
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            index.search_persons(held.vectors[:2], 1)
            index.maintain()

    with ThreadPoolExecutor(2) as pool:
        searching = [pool.submit(search) for _ in range(2)]
        for start in range(0, 4_000, 200):
            some = slice(start, start + 200)
            index.add(Templates(held.keys[some], held.person_keys[some], held.vectors[some]))
            index.remove(held.keys[some][::2])
        stop.set()
        for one in searching:
            one.result(PATIENCE_S)
    settle(index)
    rest = without(held, held.keys[::2])
    assert_equal_to_brute_force(index, rest, held.vectors[:40], 3)
    rows = rows_of(index)
    for shard, start in scanner_of(index)._starts.items():
        dead = start + np.flatnonzero(~shard.rows.alive)
        assert not rows.values[dead].any()


# --- on a device ---------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_said() -> None:
    if importlib.util.find_spec("libcuvs"):
        pytest.skip("cuVS is installed")
    with pytest.raises(DeviceError, match=r"LIKENESS_INDEX_DEVICE=cuda .* the 'gpu' extra"):
        CudaDevice()


def test_rows_behind_the_proposed_ones_of_a_degraded_probe(
    galleries: DeviceGalleries, threads: ThreadPoolExecutor
) -> None:
    """The rows that are most similar to it by the cosine are degraded too, and score less than
    others that are not among the first proposed."""
    basis = np.linalg.qr(np.random.default_rng(5).standard_normal((D, D)))[0].astype(np.float32)
    direction, person, noise = basis[0], basis[1], basis[2:]
    kinds = [(0.75, 0.08, 57), (0.1, 0.71, 7), (0.0, 0.792, 5)]  # along each, and how many rows
    rows = [
        along * direction + own * person + np.sqrt(1 - along**2 - own**2) * noise[number % (D - 2)]
        for along, own, count in kinds
        for number in range(count)
    ]
    held = templates(np.array([*rows, *drawn(600)], np.float32))
    index = new_index(galleries, threads)
    index.add(held)
    settle(index)
    assert index.state.shards
    probe = (direction + person) / np.sqrt(np.float32(2))
    assert_equal_to_brute_force(index, held, probe[np.newaxis], 6, Comparator(direction, 1.5))
