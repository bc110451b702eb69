"""What is removed while something else is under way stays removed: in memory and in the files."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from app.encryption.ring import KeyRing
from app.gallery.gallery import Gallery
from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import IndexShape, Rows
from app.index.factory import IndexFactory
from app.locks import made_by
from app.store.records import PersonTemplate
from app.store.schema import migrate
from app.store.store import Store
from tests.descriptors import open_under
from tests.gallery.conftest import certified_of, open_engine, template
from tests.index.conftest import Vectors, settle, templates, unit
from tests.index.test_snapshot import KEY, on_disk
from tests.locks import BEFORE, RELEASED, Pause
from tests.writing import delete_collection, delete_person, enroll_person

D = 64
SHAPE = IndexShape(encode_at=64, merge_at=3)


def drawn(count: int, seed: int = 0) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((count, D)))


@pytest.fixture
def pause() -> Iterator[Pause]:
    """Locks that are made in this test can be interrupted."""
    pause = Pause()
    with made_by(pause.lock):
        yield pause


@pytest.fixture(params=["plain", "encrypted"])
def ring(request: pytest.FixtureRequest) -> KeyRing | None:
    return KEY if request.param == "encrypted" else None


@pytest.fixture
def opened(database: Path, ring: KeyRing | None, pause: Pause) -> Gallery:
    engine = open_engine(database)
    migrate(engine)
    index_factory = IndexFactory(2, database.parent / "index", ring, SHAPE)
    return Gallery(Store(engine), index_factory, "es-test", D)


def enroll(gallery: Gallery, person: str, vector: Vectors, collection: str = "default") -> None:
    enroll_person(gallery, collection, person, None, [template(vector, person)])


def fill(gallery: Gallery, collection: str) -> None:
    """Seventy people, of whom the first 64 are a shard."""
    people = [
        PersonTemplate(f"p{i}", None, template(vector, f"p{i}"))
        for i, vector in enumerate(drawn(70))
    ]
    for some in (people[:64], people[64:]):
        gallery.enroll_many(collection, some)
        gallery.size(collection)
        replica = gallery._replicas[gallery.store.collections.get(collection).key]
        settle(certified_of(replica))
    assert len(certified_of(replica).state.write_buffer.rows) == 6


def held_alive(index: CertifiedIndex) -> list[int]:
    return sorted(key for part in index.parts() for key in part.keys[part.alive].tolist())


def vectors_of(index: CertifiedIndex) -> NDArray[np.float32]:
    return np.concatenate([part.vectors for part in index.parts()])


class TestIndex:
    """Removals at every moment of a rewrite."""

    @pytest.mark.parametrize("event", [RELEASED, BEFORE])
    def test_a_row_that_goes_while_the_tail_grows_and_is_encoded(
        self, threads: ThreadPoolExecutor, pause: Pause, event: str
    ) -> None:
        index = CertifiedIndex(D, threads, SHAPE)
        index.add(templates(drawn(64)))

        def grow_and_remove() -> None:
            index.add(templates(drawn(1, seed=1), first=65))
            index.remove(np.array([7]))

        # After the rewrite has seen which rows there are; before it puts the shard in place.
        pause.arm(
            grow_and_remove, event=event, name="index.writing", at=1 if event == RELEASED else 2
        )
        settle(index)
        assert not pause.disarm()
        assert held_alive(index) == [key for key in range(1, 66) if key != 7]
        assert drawn(64)[6].tobytes() not in vectors_of(index).tobytes()
        assert index.extent().templates == 64

    def test_a_row_that_goes_while_shards_are_merged(
        self, threads: ThreadPoolExecutor, pause: Pause
    ) -> None:
        index = CertifiedIndex(D, threads, SHAPE)
        for first in (1, 65, 129):
            index.add(templates(drawn(64, seed=first), first=first))
            index.maintain()
        pause.arm(
            lambda: index.remove(np.array([70, 150])), event=BEFORE, name="index.writing", at=2
        )
        settle(index)
        assert not pause.disarm()
        assert len(index.state.shards) == 1
        assert index.extent().templates == len(held_alive(index)) == 190
        assert not np.isin([70, 150], held_alive(index)).any()

    def test_the_code_of_a_removed_row_is_forgotten(self, threads: ThreadPoolExecutor) -> None:
        index = CertifiedIndex(D, threads, SHAPE)
        index.add(templates(drawn(64)))
        settle(index)
        (shard,) = index.state.shards
        assert shard.codes.scan.packed().any()
        index.remove(np.arange(1, 65))
        assert not shard.codes.scan.packed().any()


class TestSnapshot:
    """Deletions at every moment of a save: in no file when they are acknowledged."""

    # Counted from the save's start: before its state is captured, while the shard's file is
    # written, while the write buffer's is, before the manifest.
    @pytest.mark.parametrize("moment", range(1, 13))
    def test_a_person_deleted_while_a_snapshot_is_written(
        self, opened: Gallery, database: Path, pause: Pause, moment: int
    ) -> None:
        fill(opened, "default")
        (replica,) = opened._replicas.values()
        gone = [drawn(70)[i].tobytes() for i in (7, 66)]  # in a shard, in the write buffer
        seen = list[bool]()

        def delete() -> None:
            delete_person(opened, "default", "p7")
            delete_person(opened, "default", "p66")
            seen.extend(vector in on_disk(database.parent) for vector in gone)

        pause.arm(delete, event=RELEASED, name="snapshot.files", at=moment)
        replica.save()
        assert not pause.disarm()
        assert seen == [False, False]
        assert opened.check_index("default").clean
        opened.run_maintenance()
        replica.save()
        assert opened.check_index("default").clean
        assert not any(vector in on_disk(database.parent) for vector in gone)
        opened.close()

    @pytest.mark.parametrize("moment", range(1, 9))
    def test_a_collection_deleted_while_its_snapshot_is_written(
        self, opened: Gallery, database: Path, pause: Pause, moment: int
    ) -> None:
        opened.create_collection("staff", {})
        fill(opened, "staff")
        replica = opened._replicas[opened.store.collections.get("staff").key]
        folder = replica.index.saved_copy._snapshot._folder  # type: ignore[attr-defined]
        delete = partial(delete_collection, opened, "staff")
        pause.arm(delete, event=RELEASED, name="snapshot.files", at=moment)
        replica.maintain()
        replica.save()
        assert not pause.disarm()
        assert not folder.exists()
        replica.maintain()
        replica.save()
        assert not folder.exists()
        assert open_under(folder) == []
        opened.close()
        assert not folder.exists()


def test_a_reader_that_comes_late_leaves_no_folder(database: Path, pause: Pause) -> None:
    engine = open_engine(database)
    migrate(engine)
    gallery = Gallery(Store(engine), IndexFactory(2, database.parent / "index"), "es-test", D)
    gallery.create_collection("staff", {})
    enroll(gallery, "ada", drawn(1)[0], "staff")
    key = gallery.store.collections.get("staff").key
    delete = partial(delete_collection, gallery, "staff")
    pause.arm(delete, event=BEFORE, name="gallery.replicas", patience_s=60)
    with pytest.raises(Exception, match="deleted meanwhile"):
        gallery.size("staff")
    assert not pause.disarm()
    assert key not in gallery._replicas
    assert not list((database.parent / "index").glob(f"*/{key}"))
    gallery.close()


def test_nothing_waits_to_be_erased_where_there_is_no_snapshot(database: Path) -> None:
    engine = open_engine(database)
    migrate(engine)
    gallery = Gallery(Store(engine), IndexFactory(2), "es-test", D)
    for i, vector in enumerate(drawn(5)):
        enroll(gallery, f"p{i}", vector)
        delete_person(gallery, "default", f"p{i}")
    (replica,) = gallery._replicas.values()
    assert replica.index._state.to_erase == []  # type: ignore[attr-defined]
    gallery.close()


@pytest.mark.parametrize("_again", range(5))
def test_what_remains_while_rows_are_removed(_again: int) -> None:
    """NumPy alone lists rows that do not exist, if flags change between its two looks at them."""
    rows = Rows.of(templates(unit(np.ones((100_000, 4)))))

    def remove() -> None:
        for number in range(len(rows)):
            rows.alive[number] = False

    with ThreadPoolExecutor(1) as pool:
        removing = pool.submit(remove)
        while not removing.done():
            remaining = rows.remaining()
            assert (np.diff(remaining) > 0).all()
            assert not len(remaining) or remaining[-1] < len(rows)
        removing.result()
    assert not len(rows.remaining())
