"""Indexes opened on demand and closed for memory: answers, deletions and files are the same."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from app.encryption.ring import KeyRing
from app.errors import CollectionNotFound, DamagedData, EncryptionKeyMissing, PersonNotFound
from app.gallery.gallery import Gallery
from app.gallery.indexes import Indexes
from app.gallery.replica import Replica
from app.index.certified.rows import IndexShape
from app.index.factory import IndexFactory
from app.store.records import CollectionRecord, Erasure
from app.store.schema import migrate
from app.store.sql.collections import CollectionStore
from app.store.store import Store
from tests.gallery.conftest import open_engine, template
from tests.gallery.test_erasing import long_reader
from tests.index.conftest import Vectors, unit
from tests.index.test_snapshot import KEY, on_disk
from tests.writing import delete_collection, delete_person, enroll_person

D = 64
SHAPE = IndexShape(encode_at=64, merge_at=3)  # from 4 rows on there is a snapshot
TINY = 1  # byte of memory: only the index that is used stays open
Open = Callable[..., Gallery]


def drawn(count: int, seed: int = 0) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((count, D)))


@pytest.fixture
def open_gallery(database: Path) -> Iterator[Open]:
    """Galleries as so many processes over one data folder; those still open are closed."""
    opened: list[Gallery] = []

    def opener(limit: int = TINY, ring: KeyRing | None = None) -> Gallery:
        engine = open_engine(database)
        migrate(engine)
        index_factory = IndexFactory(2, database.parent / "index", ring, SHAPE, max_bytes=limit)
        opened.append(Gallery(Store(engine), index_factory, "es-test", D))
        return opened[-1]

    yield opener
    for gallery in opened:
        gallery.close()


def fill(gallery: Gallery, name: str, count: int, seed: int = 0) -> Vectors:
    """A collection of so many people of one template each."""
    gallery.create_collection(name, {})
    vectors = drawn(count, seed)
    for number, vector in enumerate(vectors):
        enroll_person(gallery, name, f"p{number}", None, [template(vector, str(number))])
    return vectors


def nearest(gallery: Gallery, name: str, probe: Vectors) -> str | None:
    (row,) = gallery.identify(name, probe[np.newaxis], 1).rows
    return row[0].face.person_id if row and row[0].similarity > 0.999 else None


def open_names(gallery: Gallery) -> set[str]:
    return {gallery.store.collections.by_key(key).name for key in gallery._replicas}


def manifests(database: Path) -> int:
    return len(list(database.parent.rglob("manifest.json")))


class TestClosing:
    @pytest.mark.slow
    def test_the_least_recently_used_go_and_come_again(self, open_gallery: Open) -> None:
        gallery = open_gallery()
        vectors = {name: fill(gallery, name, 100, seed) for seed, name in enumerate("abc")}
        for name in "abcbacca":
            assert nearest(gallery, name, vectors[name][70]) == "p70"
            assert open_names(gallery) == {name}
        counts = gallery.open_indexes()
        assert (counts.open, counts.opened - counts.closed) == (1, 1)
        assert gallery.costs().searches == 8  # also of those that are closed

    def test_with_room_all_stay(self, open_gallery: Open) -> None:
        gallery = open_gallery(limit=100_000_000)
        for name in "abc":
            fill(gallery, name, 5)
        assert open_names(gallery) >= set("abc")
        assert 0 < gallery.open_indexes().bytes < 1_000_000

    @pytest.mark.slow
    def test_their_memory_is_known_after_each_change(self, open_gallery: Open) -> None:
        gallery = open_gallery(limit=100_000_000)
        vectors = fill(gallery, "a", 100)
        sizes = []
        for number in range(3):
            gallery.run_maintenance()  # then nothing is left to do: it has settled
            nearest(gallery, "a", vectors[0])
            sizes.append(gallery.open_indexes().bytes)
            for one, vector in enumerate(drawn(100 * 2**number, number + 1)):
                enroll_person(gallery, "a", f"{number}-{one}", None, [template(vector, "x")])
        assert sizes[0] < sizes[1] < sizes[2]

    def test_what_was_not_saved_is_saved_first(self, open_gallery: Open, database: Path) -> None:
        gallery = open_gallery()
        vectors = fill(gallery, "a", 10)
        gallery.size("a")
        assert manifests(database) == 0
        gallery.size("default")
        assert manifests(database) == 1
        with gallery.store.database.writing() as connection:
            # Only the snapshot can tell now.
            connection.exec_driver_sql("UPDATE templates SET embedding = zeroblob(256)")
        assert nearest(gallery, "a", vectors[3]) == "p3"

    def test_one_that_is_searched_stays(self, open_gallery: Open) -> None:
        gallery = open_gallery()
        fill(gallery, "a", 5)
        fill(gallery, "b", 5)
        record = gallery.store.collections.get("a")
        with gallery._indexes.current(record) as index:
            gallery.size("b")
            gallery.size("default")
            assert "a" in open_names(gallery)
            assert gallery._replicas[record.key].index is index
        gallery.size("b")
        assert open_names(gallery) == {"b"}

    def test_a_thread_that_may_not_wait_closes_no_other(self, open_gallery: Open) -> None:
        gallery = open_gallery()
        fill(gallery, "b", 5)
        fill(gallery, "a", 5)
        gallery.size("a")
        with gallery._indexes.at_revision(gallery.store.collections.get("a")) as searcher:
            assert searcher is not None
            gallery.size("b")
        assert open_names(gallery) == {"a", "b"}
        gallery.size("b")
        assert open_names(gallery) == {"b"}

    def test_writes_open_nothing_where_there_is_no_room(self, open_gallery: Open) -> None:
        gallery = open_gallery()
        fill(gallery, "a", 5)
        gallery.size("default")
        enroll_person(gallery, "a", "new", None, [template(drawn(1, seed=9)[0], "new")])
        assert open_names(gallery) == {"default"}
        assert nearest(gallery, "a", drawn(1, seed=9)[0]) == "new"

    @pytest.mark.slow
    def test_many_threads_over_few_places(self, open_gallery: Open) -> None:
        gallery = open_gallery()
        names = [f"c{number}" for number in range(6)]
        vectors = {name: fill(gallery, name, 20, seed) for seed, name in enumerate(names)}
        failures: list[str] = []

        def work(seed: int) -> None:
            random = np.random.default_rng(seed)
            for turn in range(15):
                name = names[random.integers(len(names))]
                person = f"{seed}-{turn}"
                (vector,) = drawn(1, seed=1000 + 100 * seed + turn)
                enroll_person(gallery, name, person, None, [template(vector, person)])
                if nearest(gallery, name, vector) != person:
                    failures.append(f"{person} is not in {name}")
                delete_person(gallery, name, person)
                if nearest(gallery, name, vector) is not None:
                    failures.append(f"{person} is in {name} again")
                gallery.run_maintenance()

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert failures == []
        for name in names:
            assert gallery.size(name).templates == 20
            assert nearest(gallery, name, vectors[name][7]) == "p7"
            assert gallery.check_index(name).clean


class TestDeletion:
    """The same for an index that is closed."""

    @pytest.mark.parametrize("ring", [None, KEY], ids=["plain", "encrypted"])
    def test_a_person_leaves_no_bytes_in_a_closed_collection(
        self, open_gallery: Open, database: Path, ring: KeyRing | None
    ) -> None:
        gallery = open_gallery(ring=ring)
        vectors = fill(gallery, "a", 80)
        gallery.size("a")
        gallery.run_maintenance()
        gallery.size("default")
        assert open_names(gallery) == {"default"}
        gone = [vectors[number].tobytes() for number in (3, 75)]  # in a shard, in the write buffer
        assert ring is not None or all(one in on_disk(database.parent) for one in gone)
        for number in (3, 75):
            assert delete_person(gallery, "a", f"p{number}").erased is Erasure.DONE
        assert not any(one in on_disk(database.parent) for one in gone)
        assert nearest(gallery, "a", vectors[3]) is None
        assert gallery.check_index("a").clean

    def test_the_snapshot_of_a_closed_index_is_deleted_with_the_collection(
        self, open_gallery: Open, database: Path
    ) -> None:
        gallery = open_gallery()
        fill(gallery, "a", 10)
        gallery.size("a")
        gallery.size("default")
        assert manifests(database) == 1
        assert delete_collection(gallery, "a").erased is Erasure.DONE
        assert list((database.parent / "index").glob("*/*/*")) == []
        with pytest.raises(CollectionNotFound):
            gallery.size("a")

    def test_another_process_deletes_what_is_closed_here(
        self, open_gallery: Open, database: Path
    ) -> None:
        owner, other = open_gallery(), open_gallery()
        vectors = fill(owner, "a", 80)
        owner.size("a")
        owner.run_maintenance()
        owner.size("default")
        owner.run_maintenance()
        assert delete_person(other, "a", "p3").erased is Erasure.PENDING
        assert vectors[3].tobytes() in on_disk(database.parent / "index")
        owner.run_maintenance()
        assert vectors[3].tobytes() not in on_disk(database.parent)
        delete_collection(other, "a")
        owner.run_maintenance()
        assert manifests(database) == 0

    def test_what_others_only_add_opens_nothing(self, open_gallery: Open) -> None:
        owner, other = open_gallery(), open_gallery()
        fill(owner, "a", 10)
        owner.size("a")
        owner.size("default")
        owner.run_maintenance()
        opened = owner.open_indexes().opened
        for number in range(3):
            enroll_person(
                other, "a", f"n{number}", None, [template(drawn(1, seed=number + 1)[0], "n")]
            )
            owner.run_maintenance()
        assert owner.open_indexes().opened == opened
        assert owner.size("a").templates == 13


class TestOwner:
    """One process may change the snapshots; when it ends, another may."""

    def test_the_next_owner_erases_what_the_first_left(
        self, open_gallery: Open, database: Path
    ) -> None:
        first = open_gallery(limit=100_000_000)
        vectors = fill(first, "a", 80)
        first.run_maintenance()
        second = open_gallery(limit=100_000_000)
        assert nearest(second, "a", vectors[70]) == "p70"  # from the first one's files
        enroll_person(first, "a", "new", None, [template(drawn(1, seed=5)[0], "new")])
        first._replicas[
            first.store.collections.get("a").key
        ].save()  # files that the second never read
        assert delete_person(second, "a", "new").erased is Erasure.PENDING
        assert delete_person(second, "a", "p3").erased is Erasure.PENDING
        first._indexes._catalog.release()  # as where it is killed
        assert delete_person(second, "a", "p75").erased is Erasure.DONE
        left = on_disk(database.parent / "index")
        for vector in (drawn(1, seed=5)[0], vectors[3], vectors[75]):
            assert vector.tobytes() not in left
        second.run_maintenance()
        assert manifests(database) == 1
        assert second.check_index("a").clean
        third = open_gallery()
        assert third.check_index("a").clean

    def test_the_next_owner_saves_nothing_that_the_first_erased(
        self, open_gallery: Open, database: Path
    ) -> None:
        first, second = open_gallery(limit=100_000_000), open_gallery(limit=100_000_000)
        first.prepare()  # which makes it the owner
        vectors, of_deleted = fill(first, "a", 80), fill(first, "b", 80, seed=1)
        for name, probe in (("a", vectors[7]), ("b", of_deleted[7])):
            assert nearest(second, name, probe) == "p7"  # read from the database into its index
        assert delete_person(first, "a", "p3").erased is Erasure.DONE
        assert delete_collection(first, "b").erased is Erasure.DONE
        first.close()
        for replica in list(second._replicas.values()):
            replica.save()  # as where an index is closed before maintenance has updated it
        assert manifests(database) == 1
        left = on_disk(database.parent / "index")
        assert not any(one.tobytes() in left for one in (vectors[3], *of_deleted))
        second.run_maintenance()
        assert second.check_index("a").clean

    def test_what_the_owner_may_be_writing_is_pending(self, open_gallery: Open) -> None:
        owner, other = open_gallery(limit=100_000_000), open_gallery(limit=100_000_000)
        owner.prepare()
        fill(owner, "a", 10)
        assert other.size("a").templates == 10
        assert delete_person(other, "a", "p3").erased is Erasure.PENDING
        assert delete_collection(other, "a").erased is Erasure.PENDING

    def test_what_a_killed_owner_left_half_written_goes(
        self, open_gallery: Open, database: Path
    ) -> None:
        first = open_gallery()
        fill(first, "a", 10)
        first.close()
        (manifest,) = database.parent.rglob("manifest.json")
        (manifest.parent / "rows-half").write_bytes(b"half a file")
        (manifest.parent.parent / "999").mkdir()
        (manifest.parent.parent / "999" / "rows-1").write_bytes(b"of no collection")
        second = open_gallery()
        second.prepare()
        second.run_maintenance()
        assert not (manifest.parent / "rows-half").exists()
        assert not (manifest.parent.parent / "999").exists()
        assert manifest.exists()

    def test_there_is_one_lock_and_no_folder_for_small_collections(
        self, open_gallery: Open, database: Path
    ) -> None:
        gallery = open_gallery(limit=100_000_000)
        for number in range(5):
            fill(gallery, f"c{number}", 3)
        gallery.run_maintenance()
        (folder,) = (database.parent / "index").iterdir()
        assert [path.name for path in folder.iterdir()] == ["lock"]
        fill(gallery, "larger", 4)
        gallery.run_maintenance()
        assert len(list(folder.iterdir())) == 2
        delete_person(gallery, "larger", "p0")
        gallery._replicas[gallery.store.collections.get("larger").key].save()
        assert [path.name for path in folder.iterdir()] == ["lock"]


class TestStart:
    def test_large_collections_are_opened_the_last_enrolled_into_as_long_as_there_is_room(
        self, open_gallery: Open
    ) -> None:
        first = open_gallery()
        for name, count in (("a", 40), ("b", 40), ("small", 3), ("c", 40)):
            fill(first, name, count)
        first.close()
        roomy = open_gallery(limit=100_000_000)
        roomy.prepare()
        assert open_names(roomy) == {"a", "b", "c"}
        tight = open_gallery(limit=2 * 40 * (D // 4 + 64))
        tight.prepare()
        assert open_names(tight) <= {"b", "c"}
        assert "c" in open_names(tight)

    def test_a_round_without_changes_reads_no_collection(
        self, open_gallery: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gallery = open_gallery(limit=100_000_000)
        fill(gallery, "a", 10)
        gallery.run_maintenance()
        gallery.run_maintenance()

        def fail(*_: object) -> None:
            pytest.fail("a collection was looked at")

        monkeypatch.setattr(CollectionStore, "marks", fail)
        monkeypatch.setattr(CollectionStore, "by_key", fail)
        monkeypatch.setattr(CollectionStore, "page", fail)
        gallery.run_maintenance()


@pytest.mark.parametrize("encrypted_before", [False, True])
def test_no_snapshot_outlasts_a_change_of_the_encryption(
    open_gallery: Open, database: Path, encrypted_before: bool
) -> None:
    """Also of a collection that nobody opens: its plain files would hold what is encrypted now."""
    rings = (KEY, None) if encrypted_before else (None, KEY)
    before = open_gallery(2**30, rings[0])
    for seed, name in enumerate("ab"):
        fill(before, name, 100, seed)
    before.run_maintenance()
    before.close()
    assert manifests(database) == 2
    after = open_gallery(ring=rings[1])
    after.prepare()  # there is room for one index
    assert len(open_names(after)) == 1
    assert not list(database.parent.rglob("rows-*"))


def test_an_index_is_saved_while_another_thread_still_opens_it(
    open_gallery: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_gallery()
    vectors = fill(first, "staff", 9)
    first.close()
    update = Replica._catch_up_or_rebuild

    def save_at_once(replica: Replica, record: CollectionRecord) -> None:
        update(replica, record)
        with ThreadPoolExecutor(1) as other:
            other.submit(replica.save).result()

    monkeypatch.setattr(Replica, "_catch_up_or_rebuild", save_at_once)
    assert nearest(open_gallery(), "staff", vectors[3]) == "p3"


def make_unreadable(gallery: Gallery, name: str) -> None:
    """As if the embedding of the first person were encrypted with a key that is not here."""
    key = gallery.store.collections.get(name).key
    first = f"SELECT min(id) FROM templates WHERE collection = {key}"
    with gallery.store.database.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE templates SET sealed = 1 WHERE id = ({first})")


def test_a_collection_that_cannot_be_read_keeps_no_other_from_being_opened(
    open_gallery: Open, database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_gallery()
    vectors = {name: fill(first, name, 20, seed) for seed, name in enumerate("abc")}
    make_unreadable(first, "b")
    first.close()
    for manifest in database.parent.rglob("manifest.json"):
        manifest.unlink()  # so that each index is made from the database
    gallery = open_gallery(limit=100_000_000)
    gallery.prepare()
    assert {"a", "c"} <= open_names(gallery)
    assert [(one.message, vars(one)["fields"]) for one in caplog.records] == [
        ("the index of a collection cannot be opened", {"collection": "b"})
    ]
    with pytest.raises(EncryptionKeyMissing):
        nearest(gallery, "b", vectors["b"][0])
    assert nearest(gallery, "c", vectors["c"][3]) == "p3"


def test_maintenance_of_one_index_that_fails_keeps_no_other_from_it(
    open_gallery: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery, other = (open_gallery(limit=100_000_000) for _ in range(2))
    vectors = {name: fill(gallery, name, 20, seed) for seed, name in enumerate("abcd")}
    gallery.run_maintenance()
    for name in "abcd":
        assert nearest(gallery, name, vectors[name][3]) == "p3"
        delete_person(other, name, "p3")  # as another process does
    broken = gallery.store.collections.get("b").key
    follow = Replica.erase

    def fails_for_b(replica: Replica, record: CollectionRecord) -> None:
        if record.key == broken:
            raise DamagedData("The embedding of a template is damaged.")
        follow(replica, record)

    monkeypatch.setattr(Replica, "erase", fails_for_b)
    for _ in range(2):
        with pytest.raises(DamagedData):
            gallery.run_maintenance()
    sizes = {
        gallery.store.collections.by_key(key).name: replica.index.searcher.extent().templates
        for key, replica in gallery._replicas.items()
    }
    assert {name: sizes[name] for name in "abcd"} == {"a": 19, "b": 20, "c": 19, "d": 19}
    assert all(one._maintained == one.index.position for one in gallery._replicas.values())
    monkeypatch.undo()
    gallery.run_maintenance()
    assert gallery.check_index("b").clean


def test_an_index_that_fails_keeps_no_pending_erasure_from_being_repeated(
    open_gallery: Open, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = open_gallery(limit=100_000_000)
    vectors = fill(gallery, "a", 20)
    with long_reader(database):
        assert delete_person(gallery, "a", "p3").erased is Erasure.PENDING

    def fails(_indexes: Indexes) -> None:
        raise DamagedData("The embedding of a template is damaged.")

    monkeypatch.setattr(Indexes, "_follow_all", fails)
    with pytest.raises(DamagedData):
        gallery.run_maintenance()
    assert gallery.store.database.eraser.pending_s() == 0
    assert vectors[3].tobytes() not in on_disk(database.parent)


def test_a_deletion_is_answered_if_its_index_cannot_be_read(
    open_gallery: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the database, and every search would see it."""
    gallery = open_gallery(limit=100_000_000)
    fill(gallery, "a", 20)
    gallery.rebuild("a")
    make_unreadable(gallery, "a")
    assert delete_person(gallery, "a", "p3").erased is Erasure.PENDING
    assert caplog.records[-1].message == "the index was not updated after a write"
    with pytest.raises(PersonNotFound):
        gallery.store.persons.get("a", "p3")
    moved = gallery.store.templates.page("a", "p4", None, 1).items[0]
    assert gallery.move_face("a", moved.face_id, "p5").person_id == "p5"


def test_a_deletion_in_a_collection_of_another_pack_opens_no_index(
    open_gallery: Open, database: Path
) -> None:
    first = open_gallery()
    vectors = fill(first, "a", 20)
    first.run_maintenance()
    first.close()
    assert manifests(database) == 1
    engine = open_engine(database)
    folder = IndexFactory(2, database.parent / "index", None, SHAPE)
    gallery = Gallery(Store(engine), folder, "es-other", D)
    assert delete_person(gallery, "a", "p3").erased is Erasure.DONE
    assert (gallery.open_indexes().open, manifests(database)) == (0, 0)
    assert vectors[3].tobytes() not in on_disk(database.parent)
    gallery.close()
