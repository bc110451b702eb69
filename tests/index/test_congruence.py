"""Every search engine answers as the reference does, whatever happened before.

A `Collection` plays the database: its changes are the truth, and an index follows them through the
search port alone. A new engine is one more line of ENGINES.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.index import gpu
from app.index.certified.rows import IndexShape
from app.index.comparator import COSINE, Comparator, Covering
from app.index.device_rows import CudaDevice, DeviceGalleries
from app.index.engine import SearchEngine
from app.index.factory import IndexFactory
from app.index.person_scores import PersonScore
from app.index.port import GallerySize, Ids, Position, SearchIndex, Templates
from tests.gallery.model.host import arrays_of
from tests.index.conftest import HostDevice, Vectors, unit
from tests.index.reference import ReferenceEngine, joined, only
from tests.index.test_snapshot import KEY, on_disk

D = 16
SHAPE = IndexShape(encode_at=8, merge_at=3)  # what takes a million templates happens within fifty
STEPS = 40
ASKED = [(1, PersonScore.BEST), (6, PersonScore.BEST), (1, PersonScore.FUSED),
         (6, PersonScore.CENTROID)]  # fmt: skip
NO_KEYS: Ids = np.empty(0, np.int64)
DIRECTIONS = unit(np.random.default_rng(3).standard_normal((2, D)))
DEGRADED = Comparator(DIRECTIONS[0], 1.5, Covering(3 * DIRECTIONS[1], offset=0.1, weight=0.3))

ENGINES: dict[str, Callable[[Path], SearchEngine]] = {
    "reference": ReferenceEngine,
    "reference, in memory": lambda _: ReferenceEngine(),
    "certified": lambda folder: IndexFactory(2, folder, shape=SHAPE),
    "certified, encrypted": lambda folder: IndexFactory(2, folder, KEY, SHAPE),
    "certified, in memory": lambda _: IndexFactory(2, shape=SHAPE),
    "gpu's stand-in": lambda folder: IndexFactory(
        2, folder, shape=SHAPE, gpu=DeviceGalleries(HostDevice())
    ),
}


@dataclass
class Collection:
    """The truth: the templates, and each change of them with its position."""

    key: int = 1
    embedding_space: str = "es-test"
    dimension: int = D
    held: Templates = field(
        default_factory=lambda: Templates(NO_KEYS, NO_KEYS, np.empty((0, D), np.float32))
    )
    changes: list[tuple[Templates, Ids, Position]] = field(default_factory=list)
    last_key: int = 0

    @property
    def position(self) -> Position:
        return self.changes[-1][2] if self.changes else Position(0, "start")

    def is_known(self, position: Position) -> bool:
        known = [Position(0, "start"), *(change[2] for change in self.changes)]
        return position in known

    def change(self, persons: Ids, vectors: Vectors, removed: Ids = NO_KEYS) -> None:
        """Add templates under new keys, and remove some."""
        keys = np.arange(self.last_key + 1, self.last_key + 1 + len(persons))
        self.last_key += len(persons)
        added = Templates(keys, persons, vectors)
        revision = len(self.changes) + 1
        self.changes.append((added, removed, Position(revision, f"s{revision}")))
        held = joined(self.held, added)
        self.held = only(held, ~np.isin(held.keys, removed))

    def update(self, index: SearchIndex, again: int = 0) -> None:
        """Apply what is later than the index, and some changes once more."""
        assert index.position is not None
        for change in self.changes[max(0, index.position.revision - again) :]:
            index.apply(*change)


class Life:
    """Random operations on one collection and on its index under test."""

    def __init__(self, engine: Callable[[], SearchEngine], seed: int) -> None:
        self._new_engine = engine
        self._random = np.random.default_rng(seed)
        self.truth = Collection()
        self.loads = self.steps = 0
        self.gone = list[bytes]()  # vectors that were removed and are not held under another key
        self.open()

    def open(self) -> None:
        """As a process starts."""
        self.engine = self._new_engine()
        self.catalog = self.engine.catalog("db-1")
        self.catalog.own()
        self.index = self.catalog.open(self.truth)
        if self.index.saved_copy.load(self.truth.is_known):
            self.loads += 1
        else:
            held = self.truth.held
            pages = [only(held, held.keys % 2 == half) for half in (1, 0)]
            self.index.build(iter(pages), self.truth.position)
        self.truth.update(self.index)

    def end(self) -> None:
        self.catalog.release()
        self.engine.close()

    def drawn(self, count: int) -> Vectors:
        return unit(self._random.standard_normal((count, D)))

    def persons(self) -> Ids:
        return np.unique(self.truth.held.person_keys)

    def some(self, keys: Ids, most: int) -> Ids:
        count = min(len(keys), int(self._random.integers(1, most + 1)))
        return np.sort(self._random.choice(keys, count, replace=False)) if count else NO_KEYS

    # --- operations --------------------------------------------------------------------------

    def add(self) -> None:
        count = int(self._random.integers(1, 12))
        persons = self._random.integers(1, 70, count).astype(np.int64)
        self.truth.change(persons, self.drawn(count))
        self.truth.update(self.index)

    def add_near_copies(self) -> None:
        person = int(self._random.integers(1, 70))
        vectors = unit(self.drawn(1) + 1e-4 * self._random.standard_normal((5, D)))
        self.truth.change(np.full(5, person), vectors)
        self.truth.update(self.index)

    def remove(self) -> None:
        self.truth.change(NO_KEYS, self.drawn(0), self.some(self.truth.held.keys, 9))
        self.truth.update(self.index)

    def move(self) -> None:
        """To another person: new rows, with the same vectors, and the old ones go."""
        held = self.truth.held
        moved = only(held, np.isin(held.keys, self.some(held.keys, 4)))
        persons = self._random.integers(1, 70, len(moved.keys)).astype(np.int64)
        self.truth.change(persons, moved.vectors, moved.keys)
        self.truth.update(self.index)

    def merge(self) -> None:
        """All templates of one person to another one."""
        held, (source, target) = self.truth.held, self._random.integers(1, 70, 2)
        moved = only(held, held.person_keys == source)
        self.truth.change(np.full(len(moved.keys), target), moved.vectors, moved.keys)
        self.truth.update(self.index)

    def apply_again(self) -> None:
        self.truth.change(np.array([7]), self.drawn(1))
        self.truth.update(self.index, again=3)

    def maintain(self) -> None:
        for _ in range(100):
            if not self.index.maintain():
                return
        pytest.fail("maintenance does not end")

    def remove_while_maintained(self) -> None:
        """Changes while another thread rewrites and saves."""

        def work() -> None:
            self.maintain()
            if self.index.saved_copy.may_save():
                self.index.saved_copy.save()

        other = threading.Thread(target=work)
        other.start()
        for operation in (self.remove, self.add, self.move):
            operation()
            self.index.saved_copy.erase()
        other.join(30)
        assert not other.is_alive()

    def save(self) -> None:
        # Else an encrypted file that holds what was removed goes, unsaved.
        self.index.saved_copy.erase()
        if self.index.saved_copy.may_save():
            self.index.saved_copy.save()
            assert not self.index.saved_copy.unsaved

    def reopen(self) -> None:
        self.index.saved_copy.erase()
        self.index.close()
        self.end()
        self.open()

    def reopen_late(self) -> None:
        """Changes that no process followed."""
        self.index.saved_copy.erase()
        self.end()
        held = self.truth.held
        self.truth.change(np.array([3]), self.drawn(1), self.some(held.keys, 3))
        self.open()

    def set_back(self) -> None:
        """A database of another history: what is saved belongs to it no more."""
        self.index.saved_copy.erase()
        self.end()
        changes = self.truth.changes
        self.truth.changes = [(*c[:2], Position(c[2].revision, "other")) for c in changes]
        self.open()

    # --- what must be true -------------------------------------------------------------------

    def step(self) -> None:
        operations: list[Callable[[], None]] = [
            self.add, self.add, self.add, self.add_near_copies, self.remove, self.move, self.merge,
            self.apply_again, self.maintain, self.maintain, self.remove_while_maintained,
            self.save, self.reopen, self.reopen_late, self.set_back,
        ]  # fmt: skip
        before = {vector.tobytes() for vector in self.truth.held.vectors}
        operation = operations[int(self._random.integers(len(operations)))]
        operation()
        now = {vector.tobytes() for vector in self.truth.held.vectors}
        self.gone = [one for one in {*self.gone, *(before - now)} if one not in now]
        assert self.index.position == self.truth.position, operation
        self.steps += 1
        self.compare([(COSINE, DEGRADED)[self.steps % 2]])  # with both, twice the time

    def compare(self, comparators: Sequence[Comparator] = (COSINE, DEGRADED)) -> None:
        """Every answer, with the reference's."""
        truth = ReferenceEngine().catalog("db-1").open(self.truth)
        truth.build([self.truth.held], self.truth.position)
        both: tuple[SearchIndex, SearchIndex] = (self.index, truth)
        persons = self.some(self.persons(), 70)
        probes = np.concatenate([self.drawn(3), self.truth.held.vectors[:3]])
        for comparator in comparators:
            for allowed in (None, persons, NO_KEYS):
                for top_k, score in ASKED:
                    asked = (probes, top_k, allowed, comparator, score)
                    found, wanted = (one.searcher.search_persons(*asked) for one in both)
                    for some, others in zip(found, wanted, strict=True):
                        same_hits(some, others)
            likeness, wanted_likeness = (one.searcher.likeness(comparator) for one in both)
            assert likeness == pytest.approx(wanted_likeness, abs=3e-6)
        owners = np.concatenate([np.full(3, -1), self.truth.held.person_keys[:3]])
        for floor in (-1.0, 0.3, 0.99):
            found_others, nearest = (
                one.searcher.nearest_others(probes, owners, floor) for one in both
            )
            assert found_others.similarities == pytest.approx(nearest.similarities, abs=3e-6)
            clear = np.abs(nearest.similarities - floor) > 1e-5
            assert ((found_others.keys == -1) == (nearest.keys == -1))[clear].all()
        for allowed in (None, persons):
            same_extent(self.index.searcher.extent(allowed), truth.searcher.extent(allowed))
        assert self.index.searcher.effective(persons) == pytest.approx(
            truth.searcher.effective(persons), rel=0.011
        )
        content = self.index.content()
        assert content.keys.tolist() == self.truth.held.keys.tolist()
        every = content.templates(np.arange(len(content.keys)))
        assert every.vectors.tobytes() == self.truth.held.vectors.tobytes()
        assert every.person_keys.tolist() == self.truth.held.person_keys.tolist()
        same_extent(content.extent(), truth.searcher.extent())

    def assert_forgotten(self, folder: Path) -> None:
        """Nothing that was removed is in memory, nor in a file."""
        self.index.saved_copy.erase()
        assert self.index.saved_copy.erased
        assert self.index.content().unerased() == 0
        memory = b"|".join(arrays_of([self.index]))
        assert not [one for one in self.gone if one in memory]
        files = on_disk(folder)
        assert not [one for one in self.gone if one in files]


def same_hits(found: list[Any], wanted: list[Any]) -> None:
    """Equal scores at every place; equal persons where no two scores are nearly equal."""
    scores = [hit.similarity for hit in wanted]
    assert [hit.similarity for hit in found] == pytest.approx(scores, abs=3e-6)
    for one, other in zip(found, wanted, strict=True):
        clear = sum(abs(other.similarity - score) < 1e-5 for score in scores) == 1
        if clear and other is not wanted[-1]:
            assert one.person_key == other.person_key


def same_extent(found: GallerySize, wanted: GallerySize) -> None:
    assert (found.persons, found.templates) == (wanted.persons, wanted.templates)
    effective = [[n for n, people in one.spread for _ in range(people)] for one in (found, wanted)]
    assert effective[0] == pytest.approx(effective[1], rel=0.011)


@pytest.fixture(params=ENGINES)
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], SearchEngine]:
    monkeypatch.setattr(
        gpu, "STEPS", (2, 16)
    )  # indexes are small, and are not asked for as a whole
    return lambda: ENGINES[request.param](tmp_path / "index")


def live(engine: Callable[[], SearchEngine], folder: Path, seed: int) -> None:
    life = Life(engine, seed)
    for _ in range(STEPS):
        life.step()
    life.assert_forgotten(folder)
    life.save()
    life.reopen()
    life.compare()
    assert life.loads or life.index.saved_copy.content(life.truth.is_known) is None
    life.end()


def test_random_operations(engine: Callable[[], SearchEngine], tmp_path: Path) -> None:
    live(engine, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_more_random_operations(
    engine: Callable[[], SearchEngine], tmp_path: Path, seed: int
) -> None:
    live(engine, tmp_path, seed)


@pytest.mark.gpu
def test_random_operations_on_a_device(tmp_path: Path) -> None:
    def engine() -> SearchEngine:
        galleries = DeviceGalleries(CudaDevice())
        return IndexFactory(2, tmp_path / "index", shape=SHAPE, gpu=galleries)

    live(engine, tmp_path, 0)
