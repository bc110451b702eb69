"""An index kept on disk: restored as it was, never mistaken for another, without deleted rows."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.disk import Ownership
from app.encryption.keys import parse_keys
from app.encryption.ring import KeyRing
from app.gallery import replica as replica_module
from app.gallery.gallery import Gallery
from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import IndexShape, living
from app.index.certified.snapshots.files import SnapshotError
from app.index.certified.snapshots.folder import Captured, SnapshotFolder
from app.index.certified.snapshots.reading import IndexIdentity
from app.index.factory import IndexFactory
from app.index.port import Position, Templates
from app.store.schema import migrate
from app.store.store import Store
from tests.gallery.conftest import open_engine, template
from tests.index.conftest import SMALL, settle, templates, unit
from tests.writing import delete_collection, delete_person, enroll_person

D = 64
KEY = KeyRing(parse_keys(b"one:" + b"8J2cQx0m3vL5tYw7Zr9aBd1FgHkMnPqSuVxE4iT6oWA=", "test"))
WHOSE = IndexIdentity("db-1", 1, "es-test", D)


def drawn(count: int, seed: int = 0) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((count, D)))


@pytest.fixture(params=["plain", "encrypted"])
def ring(request: pytest.FixtureRequest) -> KeyRing | None:
    return KEY if request.param == "encrypted" else None


def filled(threads: ThreadPoolExecutor, count: int = 700) -> CertifiedIndex:
    index = CertifiedIndex(D, threads, SMALL)
    index.add(templates(drawn(count)))
    settle(index)
    index.add(templates(drawn(30, seed=1), first=10_001))
    return index


def keep(folder: SnapshotFolder, index: CertifiedIndex, revision: int = 5) -> None:
    assert folder.own()
    assert folder.save(lambda: captured(index, revision))


def captured(index: CertifiedIndex, revision: int = 5) -> Captured:
    state = index.state
    write_buffer = living([state.write_buffer.rows], [state.write_buffer.rows.alive])
    return Captured(index.quantiser, state.shards, write_buffer, Position(revision, "mark"))


def test_it_comes_back_as_it_was(
    tmp_path: Path, threads: ThreadPoolExecutor, ring: KeyRing | None
) -> None:
    index = filled(threads)
    index.remove(np.array([3, 10_004]))
    first = SnapshotFolder(tmp_path / "a", WHOSE, ring, threads)
    keep(first, index)
    restored = SnapshotFolder(tmp_path / "a", WHOSE, ring, threads).load()
    assert restored is not None
    assert restored.position == Position(5, "mark")
    again = CertifiedIndex(D, threads, SMALL)
    again.restore(restored.quantiser, restored.shards, restored.write_buffer)
    assert again.extent() == index.extent()
    for probes in (drawn(20), drawn(20, seed=2)):
        assert again.search_persons(probes, 5) == index.search_persons(probes, 5)
    again.add(templates(drawn(300, seed=4), first=20_001))
    settle(again)
    assert again.search_persons(drawn(300, seed=4)[:1], 1)[0][0].template_key == 20_001


def test_what_did_not_change_is_not_written_again(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    index = filled(threads)
    folder = SnapshotFolder(tmp_path, WHOSE, None, threads)
    keep(folder, index)
    shard_file = max(tmp_path.glob("rows-*"), key=lambda path: path.stat().st_size)
    before = shard_file.stat().st_mtime_ns
    index.add(templates(drawn(5, seed=3), first=30_001))
    keep(folder, index, 6)
    assert shard_file.stat().st_mtime_ns == before
    assert len(list(tmp_path.glob("rows-*"))) == len(index.state.shards) + 1


def test_the_deleted_leave_no_bytes(
    tmp_path: Path, threads: ThreadPoolExecutor, ring: KeyRing | None
) -> None:
    index = filled(threads)
    folder = SnapshotFolder(tmp_path, WHOSE, ring, threads)
    keep(folder, index)
    vectors = {key: drawn(700)[key - 1].tobytes() for key in (40, 300)}
    vectors[10_002] = drawn(30, seed=1)[1].tobytes()
    if ring is None:
        assert all(vector in on_disk(tmp_path) for vector in vectors.values())
    folder.erase(np.array(list(vectors)))
    assert not any(vector in on_disk(tmp_path) for vector in vectors.values())
    restored = SnapshotFolder(tmp_path, WHOSE, ring, threads).load()
    if ring is None:
        assert restored is not None
        again = CertifiedIndex(D, threads, SMALL)
        again.restore(restored.quantiser, restored.shards, restored.write_buffer)
        assert again.size == 727
    else:
        assert restored is None  # an encrypted file cannot lose a row: it goes as a whole


def test_the_code_of_a_deleted_template_is_gone_too(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    index = CertifiedIndex(D, threads, SMALL)
    index.add(templates(np.repeat(drawn(1), 256, axis=0)))
    settle(index)
    folder = SnapshotFolder(tmp_path, WHOSE, None, threads)
    keep(folder, index)
    folder.erase(np.arange(1, 257))
    file = next(file for file in folder._files._plain.values() if "codes" in file.arrays())
    assert not file.arrays()["codes"].any()
    assert not file.arrays()["vectors"].any()


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


class TestRefused:
    def test_none_there(self, tmp_path: Path, threads: ThreadPoolExecutor) -> None:
        assert SnapshotFolder(tmp_path / "none", WHOSE, None, threads).load() is None

    @pytest.mark.parametrize(
        "other",
        [
            IndexIdentity("db-2", 1, "es-test", D),
            IndexIdentity("db-1", 2, "es-test", D),
            IndexIdentity("db-1", 1, "es-other", D),
            IndexIdentity("db-1", 1, "es-test", 32),
        ],
    )
    def test_somebody_elses(
        self, tmp_path: Path, threads: ThreadPoolExecutor, other: IndexIdentity
    ) -> None:
        keep(SnapshotFolder(tmp_path, WHOSE, None, threads), filled(threads))
        with pytest.raises(SnapshotError, match="another index"):
            SnapshotFolder(tmp_path, other, None, threads).load()

    def test_a_flipped_bit_anywhere(
        self, tmp_path: Path, threads: ThreadPoolExecutor, ring: KeyRing | None
    ) -> None:
        keep(SnapshotFolder(tmp_path, WHOSE, ring, threads), filled(threads))
        generator = np.random.default_rng(0)
        files = [path for path in tmp_path.iterdir() if path.name != "lock"]
        assert len(files) == 4  # a shard, the write buffer, the rotation, the manifest
        for path in files:
            whole = bytearray(path.read_bytes())
            for _ in range(12):
                place = int(generator.integers(len(whole)))
                flip = 1 << int(generator.integers(8))
                whole[place] ^= flip
                path.write_bytes(whole)
                self.assert_noticed(tmp_path, threads, ring, (path.name, place))
                whole[place] ^= flip
            path.write_bytes(whole)

    def assert_noticed(
        self, folder: Path, threads: ThreadPoolExecutor, ring: KeyRing | None, where: Any
    ) -> None:
        try:
            restored = SnapshotFolder(folder, WHOSE, ring, threads).load()
        except SnapshotError:
            return
        pytest.fail(f"not noticed: {where}, {restored}")

    def test_torn_files(
        self, tmp_path: Path, threads: ThreadPoolExecutor, ring: KeyRing | None
    ) -> None:
        keep(SnapshotFolder(tmp_path, WHOSE, ring, threads), filled(threads))
        for path in [path for path in tmp_path.iterdir() if path.name != "lock"]:
            whole = path.read_bytes()
            for length in (0, len(whole) // 2, len(whole) - 1):
                path.write_bytes(whole[:length])
                self.assert_noticed(tmp_path, threads, ring, (path.name, length))
            path.unlink()
            if path.name != "manifest.json":
                self.assert_noticed(tmp_path, threads, ring, path.name)
            path.write_bytes(whole)
        assert SnapshotFolder(tmp_path, WHOSE, ring, threads).load() is not None

    def test_another_key_or_none(self, tmp_path: Path, threads: ThreadPoolExecutor) -> None:
        keep(SnapshotFolder(tmp_path, WHOSE, KEY, threads), filled(threads))
        other = KeyRing(parse_keys(b"two:" + b"1J2cQx0m3vL5tYw7Zr9aBd1FgHkMnPqSuVxE4iT6oWA=", "t"))
        for ring in (other, None):
            with pytest.raises(SnapshotError):
                SnapshotFolder(tmp_path, WHOSE, ring, threads).load()


@pytest.mark.parametrize("fault", ["absent", "cut off", "no memory"])
def test_a_file_that_cannot_be_erased_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """What was to be erased is kept until it is, whatever the failure."""
    catalog = IndexFactory(2, tmp_path, shape=IndexShape(encode_at=64)).catalog("db")
    assert catalog.own()
    index = catalog.open(SimpleNamespace(key=1, embedding_space="es", dimension=16))
    vectors = unit(np.random.default_rng(0).standard_normal((128, 16)))
    nothing = np.empty(0, np.int64)
    index.build([], Position(1, "a"))
    for revision, part in ((2, slice(0, 64)), (3, slice(64, 128))):
        keys = np.arange(1, 129)[part]
        index.apply(Templates(keys, keys, vectors[part]), nothing, Position(revision, "a"))
        while index.maintain():
            pass
    index.saved_copy.save()
    every = index._snapshot._files._plain.values()
    files = [file for file in every if len(file.arrays()["keys"])]
    removed = [int(file.arrays()["keys"][3]) for file in files]
    broken, intact = files
    whole = broken.path.read_bytes()
    if fault == "absent":
        broken.path.unlink()
        broken.path.mkdir()
    elif fault == "cut off":
        broken.path.write_bytes(whole[:-1])
    empty = Templates(nothing, nothing, np.empty((0, 16), np.float32))
    index.apply(empty, np.array(removed), Position(4, "a"))
    if fault == "no memory":

        def no_memory(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patched:
            patched.setattr(type(intact), "erase", no_memory)
            with pytest.raises(MemoryError):
                index.saved_copy.erase()
    else:
        index.saved_copy.erase()
        assert not intact.arrays()["vectors"][3].any()
    assert not index.saved_copy.erased
    if fault == "absent":
        broken.path.rmdir()
    broken.path.write_bytes(whole)
    index.saved_copy.erase()
    assert index.saved_copy.erased
    assert not any(file.arrays()["vectors"][3].any() for file in files)


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    first, second = (Ownership(tmp_path / "new") for _ in range(2))
    assert first.own()
    assert not second.own()
    first.release()
    assert second.own()


class TestGallery:
    """The same through the gallery, over a database."""

    def open(self, database: Path, ring: KeyRing | None = None) -> Gallery:
        engine = open_engine(database)
        migrate(engine)
        shape = IndexShape(encode_at=128, merge_at=3)
        index_factory = IndexFactory(2, database.parent / "index", ring, shape)
        return Gallery(Store(engine), index_factory, "es-test", D)

    def enroll(self, gallery: Gallery, person: str, vectors: NDArray[np.float32]) -> None:
        new = [template(vector, f"{person}-{vector[0]!r}") for vector in vectors]
        enroll_person(gallery, "default", person, None, new)

    def fill(self, gallery: Gallery) -> None:
        for start in range(0, 600, 20):
            self.enroll(gallery, f"p{start}", drawn(600)[start : start + 20])
        gallery.run_maintenance()

    def nearest(self, gallery: Gallery, probe: NDArray[np.float32]) -> tuple[str, float]:
        (row,) = gallery.identify("default", probe[np.newaxis], 1).rows
        return row[0].face.person_id, row[0].similarity

    def test_a_start_takes_the_snapshot_and_what_came_after(
        self, database: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.open(database)
        self.fill(first)
        self.enroll(first, "later", drawn(1, seed=5))
        delete_person(first, "default", "p40")
        # Killed, not closed: what is on disk is older than the database.
        monkeypatch.setattr(replica_module.Replica, "_build", refuse)
        second = self.open(database)
        assert self.nearest(second, drawn(1, seed=5)[0])[0] == "later"
        assert self.nearest(second, drawn(600)[45])[1] < 0.9
        assert self.nearest(second, drawn(600)[85])[0] == "p80"
        assert second.size("default").templates == 581
        first.close()
        second.close()

    def test_deleted_embeddings_leave_no_bytes_anywhere(self, database: Path) -> None:
        gallery = self.open(database)
        self.fill(gallery)
        gallery.run_maintenance()
        gone = [vector.tobytes() for vector in drawn(600)[100:120]]
        assert all(vector in on_disk(database.parent) for vector in gone)
        delete_person(gallery, "default", "p100")
        assert not any(vector in on_disk(database.parent) for vector in gone)
        gallery.close()

    def test_a_database_set_back_is_noticed(self, database: Path) -> None:
        gallery = self.open(database)
        self.enroll(gallery, "ada", drawn(1, seed=1))
        gallery.store.close()
        kept = {path: path.read_bytes() for path in database.parent.glob("likeness.db*")}
        self.enroll(gallery, "bob", drawn(1, seed=2))
        gallery.close()  # with a snapshot that knows bob
        for path in database.parent.glob("likeness.db*"):
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)
        again = self.open(database)
        assert again.size("default").templates == 1
        self.enroll(again, "eve", drawn(1, seed=3))  # the revision that was bob's
        assert self.nearest(again, drawn(1, seed=3)[0])[0] == "eve"
        again.close()
        last = self.open(database)
        assert self.nearest(last, drawn(1, seed=2)[0])[0] != "bob"
        assert last.size("default").templates == 2

    def test_a_damaged_snapshot_is_built_anew_and_replaced(self, database: Path) -> None:
        first = self.open(database)
        self.fill(first)
        first.close()
        (manifest,) = database.parent.rglob("manifest.json")
        manifest.write_text(json.dumps({"content": {}, "sha256": "0"}))
        second = self.open(database)
        assert self.nearest(second, drawn(600)[85])[0] == "p80"
        second.run_maintenance()
        second.close()
        assert json.loads(manifest.read_text())["content"]["format"] == 1

    def fill_staff(self, gallery: Gallery) -> None:
        """As few people as are worth a snapshot."""
        gallery.create_collection("staff", {})
        new = [template(vector, str(i)) for i, vector in enumerate(drawn(8))]
        enroll_person(gallery, "staff", "ada", None, new)

    def test_the_folder_is_deleted_with_its_collection(self, database: Path) -> None:
        gallery = self.open(database)
        self.fill_staff(gallery)
        gallery.run_maintenance()
        assert len(list(database.parent.rglob("manifest.json"))) == 1
        assert drawn(1)[0].tobytes() in on_disk(database.parent / "index")
        delete_collection(gallery, "staff")
        assert drawn(1)[0].tobytes() not in on_disk(database.parent / "index")

    def test_what_was_deleted_while_nobody_looked_goes_at_the_next_start(
        self, database: Path
    ) -> None:
        gallery = self.open(database)
        self.fill_staff(gallery)
        gallery.close()
        store = Store(open_engine(database))
        store.collections.delete("staff")  # as by a process that has another data folder
        assert drawn(1)[0].tobytes() in on_disk(database.parent / "index")
        again = self.open(database)
        again.prepare()
        again.run_maintenance()
        again.close()
        assert drawn(1)[0].tobytes() not in on_disk(database.parent / "index")

    def test_a_folder_that_cannot_be_written_is_done_without(self, database: Path) -> None:
        (database.parent / "index").write_text("")
        gallery = self.open(database)
        self.fill(gallery)
        assert self.nearest(gallery, drawn(600)[85])[0] == "p80"
        gallery.close()


def refuse(*_: Any) -> None:
    pytest.fail("the index was built from the database")


def test_a_plain_snapshot_goes_when_a_key_comes(database: Path) -> None:
    opener = TestGallery()
    first = opener.open(database)
    opener.fill(first)
    first.close()
    vector = drawn(600)[85].tobytes()
    assert vector in on_disk(database.parent / "index")
    second = opener.open(database, KEY)
    assert opener.nearest(second, drawn(600)[85])[0] == "p80"
    second.run_maintenance()
    assert vector not in on_disk(database.parent / "index")
    second.close()
    assert list(database.parent.rglob("manifest.json"))
