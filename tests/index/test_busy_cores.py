"""A search on a photo's thread takes no thread from another photo."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import IndexShape
from app.index.certified.search import ProbeSearch, ThreadScanner
from app.index.certified.shards import Shard
from app.inference.fair_pool import FairThreadPool, RequestShare
from app.types import CooperativeTask
from tests.index.conftest import brute_force, same_answer, settle, templates, unit
from tests.waiting import PATIENCE_S

D = 16


def on_a_pool(threads: int, work: Callable[[], object]) -> object:
    """What work returns on a thread of a pool for photos."""

    def steps() -> CooperativeTask[object]:
        return work()
        yield

    pool = FairThreadPool("test", threads, capacity=1)
    try:
        return pool.submit(steps(), RequestShare()).result(PATIENCE_S)
    finally:
        pool.close()


@pytest.mark.parametrize(("threads", "scans"), [(1, "alone"), (2, "shared")])
def test_other_threads_help_a_search_only_if_cores_are_idle(
    threads: int, scans: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = templates(unit(np.random.default_rng(0).standard_normal((512, D))))
    probes, names = held.vectors[:2], set()
    both = threading.Barrier(2)
    cover = ProbeSearch.cover_together

    def recorded(shard: Shard, searches: list[ProbeSearch]) -> None:
        names.add(threading.current_thread().name.partition("_")[0])
        if scans == "shared":
            both.wait(PATIENCE_S)  # passed only by two threads at the same time
        cover(shard, searches)

    with ThreadPoolExecutor(2, "scan") as helpers:
        shape = IndexShape(encode_at=len(held.keys))
        index = CertifiedIndex(D, helpers, shape, ThreadScanner(helpers, 2))
        index.add(held)
        settle(index)
        assert index.state.shards
        monkeypatch.setattr(ProbeSearch, "cover_together", staticmethod(recorded))
        found = on_a_pool(threads, lambda: index.search_persons(probes, 3))
    assert isinstance(found, list)
    for probe, hits in zip(probes, found, strict=True):
        same_answer(hits, brute_force(held, probe, 3))
    assert ("scan" in names) is (scans == "shared")
