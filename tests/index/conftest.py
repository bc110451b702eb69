"""Small indexes that encode and merge early, and galleries that are hard to search."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import DeviceError
from app.index.certified.codes import RowNumbers
from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import IndexShape
from app.index.comparator import COSINE, Comparator
from app.index.device_rows import DeviceRows, Half
from app.index.person_scores import PersonScore
from app.index.port import Hit, Templates
from app.inference.device_memory import DeviceOutOfMemory
from tests.gallery.conftest import close_databases, database  # noqa: F401 (fixtures)
from tests.waiting import PATIENCE_S

Vectors = NDArray[np.float32]
# Shards of 256 rows, merged four at a time.
SMALL = IndexShape(encode_at=256, merge_at=4)


@pytest.fixture(scope="session")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def new_index(threads: ThreadPoolExecutor) -> Callable[..., CertifiedIndex]:
    def new(dimension: int, shape: IndexShape = SMALL) -> CertifiedIndex:
        return CertifiedIndex(dimension, threads, shape)

    return new


def unit(vectors: NDArray[np.floating]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def templates(
    vectors: Vectors, persons: NDArray[np.int64] | None = None, first: int = 1
) -> Templates:
    keys = np.arange(first, first + len(vectors), dtype=np.int64)
    return Templates(keys, keys * 10 if persons is None else persons, vectors)


def settle(index: CertifiedIndex) -> None:
    """All maintenance that is due."""
    while index.maintain():
        pass


def brute_force(
    held: Templates,
    probe: Vectors,
    top_k: int,
    comparator: Comparator = COSINE,
    score: PersonScore = PersonScore.BEST,
) -> list[tuple[int, float]]:
    """The nearest persons and their scores, by looking at everything."""
    similarities = comparator.scores(held.vectors, probe[np.newaxis])[:, 0]
    if score is PersonScore.BEST:
        persons, place = np.unique(held.person_keys, return_inverse=True)
        best = np.full(len(persons), -np.inf)
        np.maximum.at(best, place, similarities)
    else:
        persons = np.unique(held.person_keys)
        best = np.array([
            _score_of(score, similarities[mine], held.vectors[mine])
            for mine in (held.person_keys == person for person in persons)
        ])  # fmt: skip
    order = np.argsort(-best, kind="stable")[:top_k]
    return [(int(persons[row]), float(best[row])) for row in order]


def _score_of(score: PersonScore, similarities: Vectors, vectors: Vectors) -> float:
    """One person's, spelled out."""
    best = float(similarities.max())
    centroid = vectors.sum(axis=0, dtype=np.float64)
    length = max(float(np.linalg.norm(centroid)), 1.0)
    by_centroid = best if len(vectors) == 1 else float(similarities.sum()) / length
    return by_centroid if score is PersonScore.CENTROID else (best + by_centroid) / 2


def assert_equal_to_brute_force(
    index: CertifiedIndex,
    held: Templates,
    probes: Vectors,
    top_k: int,
    comparator: Comparator = COSINE,
    score: PersonScore = PersonScore.BEST,
) -> None:
    """Same similarities at every place; the same persons where no two are equally similar."""
    found = index.search_persons(probes, top_k, comparator=comparator, score=score)
    for probe, hits in zip(probes, found, strict=True):
        same_answer(hits, brute_force(held, probe, top_k, comparator, score))


def same_answer(hits: list[Hit], expected: list[tuple[int, float]]) -> None:
    found = [hit.similarity for hit in hits]
    wanted = [similarity for _, similarity in expected]
    assert found == pytest.approx(wanted, abs=3e-6)
    assert len({hit.person_key for hit in hits}) == len(hits)
    for hit, (person, similarity) in zip(hits, expected, strict=True):
        ties = sum(abs(similarity - other) < 1e-5 for other in wanted)
        assert hit.person_key == person or ties > 1 or similarity - wanted[-1] < 1e-5


class HostDevice:
    """`app.index.device_rows.Device` in the host's memory, searched by FAISS on the CPU, with
    faults to be injected."""

    def __init__(self) -> None:
        self.max_bytes = 1 << 40
        self.most_rows = 1 << 40
        self.fault: DeviceError | None = None
        self.written = 0  # rows
        self.searched: list[int] = []  # probes of each scan
        self.searching = False
        self.may_search = threading.Event()
        self.may_search.set()

    def new_rows(self, capacity: int, dimension: int) -> "HostRows":
        self.check()
        if capacity > self.most_rows:
            raise DeviceOutOfMemory("no room")
        return HostRows(self, capacity, dimension)

    def check(self) -> None:
        if self.fault is not None:
            raise self.fault

    def close(self) -> None:
        pass


class HostRows:
    """`app.index.device_rows.DeviceRows` of a `HostDevice`."""

    def __init__(self, device: HostDevice, capacity: int, dimension: int) -> None:
        self.capacity = capacity
        self.values = np.zeros((capacity, dimension), np.float16)
        self._device = device

    def write(self, first: int, rows: Half) -> None:
        self._device.check()
        assert first + len(rows) <= self.capacity
        self.values[first : first + len(rows)] = rows
        self._device.written += len(rows)

    def zero(self, numbers: RowNumbers) -> None:
        self._device.check()
        self.values[numbers] = 0

    def copy(self, source: DeviceRows, start: int, count: int, first: int) -> None:
        self._device.check()
        assert isinstance(source, HostRows)
        self.values[first : first + count] = source.values[start : start + count]

    def search(self, probes: Half, count: int, most: int) -> tuple[Vectors, RowNumbers]:
        self._device.searching = True
        assert self._device.may_search.wait(PATIENCE_S)
        self._device.searching = False
        self._device.check()
        self._device.searched.append(len(probes))
        given, rows = probes.astype(np.float32), self.values[:count].astype(np.float32)
        found: tuple[Vectors, RowNumbers] = faiss.knn(
            given, rows, most, metric=faiss.METRIC_INNER_PRODUCT
        )
        return found

    def free(self) -> None:
        self.values[:] = 0
