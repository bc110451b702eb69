"""Bytes of deleted rows beside a long reader: reported as pending, repeated until they are gone."""

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.gallery.backup_bodies import dump, load
from app.gallery.gallery import Gallery
from app.gallery.replica import position_of
from app.index.certified.rows import IndexShape
from app.index.factory import IndexFactory
from app.store import eraser
from app.store.backends import backend_of, sqlite, sqlite_file
from app.store.eraser import EVERY_S, Eraser
from app.store.records import Erasure
from app.store.schema import migrate
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_engine, open_gallery, template
from tests.store.test_sqlite import everything_on_disk
from tests.writing import delete_collection, delete_person, enroll_person

Draw = Callable[[int], NDArray[np.float32]]


@contextmanager
def long_reader(database: Path) -> Iterator[None]:
    """Somebody who reads the state of now until the block is left, as a backup does."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM templates").fetchone()
    yield
    connection.close()


def enroll_ada(gallery: Gallery, directions: Draw) -> list[bytes]:
    vectors = directions(20)
    enroll_person(
        gallery, "default", "ada", {}, [template(v, str(i)) for i, v in enumerate(vectors)]
    )
    return [vector.tobytes() for vector in vectors]


def left_of(vectors: list[bytes], database: Path) -> bool:
    everything = everything_on_disk(database)
    return any(vector in everything for vector in vectors)


def test_a_deletion_beside_a_backup_is_pending_until_the_backup_has_ended(
    database: Path, gallery: Gallery, directions: Draw
) -> None:
    gallery.run_maintenance()
    vectors = enroll_ada(gallery, directions)
    with long_reader(database):
        assert delete_person(gallery, "default", "ada").erased is Erasure.PENDING
        assert gallery.store.database.eraser.pending_s() > 0
        gallery.run_maintenance()
        assert gallery.store.database.eraser.pending_s() > 0
        assert left_of(vectors, database), "what is reported as pending is there"
    gallery.run_maintenance()
    assert gallery.store.database.eraser.pending_s() == 0
    assert not left_of(vectors, database)


def test_a_deletion_that_nobody_holds_up_is_done(
    database: Path, gallery: Gallery, directions: Draw
) -> None:
    vectors = enroll_ada(gallery, directions)
    face = gallery.store.templates.page("default", "ada", None, 1).items[0]
    assert gallery.delete_face("default", face.face_id).erased is Erasure.DONE
    assert delete_person(gallery, "default", "ada").erased is Erasure.DONE
    assert not left_of(vectors, database)


def test_deletions_at_the_same_time_are_all_done(gallery: Gallery, directions: Draw) -> None:
    for number, vector in enumerate(directions(24)):
        enroll_person(gallery, "default", f"p{number}", {}, [template(vector, str(number))])
    with ThreadPoolExecutor(8) as threads:
        receipts = threads.map(
            lambda number: delete_person(gallery, "default", f"p{number}"), range(24)
        )
    assert {receipt.erased for receipt in receipts} == {Erasure.DONE}


# Deletes beside a reader, and is killed with its erasure pending.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.gallery.conftest import open_gallery
from tests.gallery.test_erasing import long_reader
from tests.writing import delete_person
gallery = open_gallery(Path(sys.argv[1]))
with long_reader(Path(sys.argv[1])):
    print(delete_person(gallery, "default", "ada").erased, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_pending_erasure_survives_a_kill(database: Path, directions: Draw) -> None:
    gallery = open_gallery(database)
    vectors = enroll_ada(gallery, directions)
    command = [sys.executable, "-c", KILLED, str(database)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.stdout == "pending\n", answer.stderr
    assert left_of(vectors, database)
    started = open_gallery(database)
    assert started.store.database.eraser.pending_s() > 0, "a start does not know, and looks"
    started.prepare()
    assert not left_of(vectors, database)


@pytest.mark.parametrize("reads", [True, False], ids=["a reader", "a disk that fails"])
def test_the_log_says_why_deleted_rows_are_left(
    database: Path,
    gallery: Gallery,
    directions: Draw,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reads: bool,
) -> None:
    gallery.run_maintenance()
    enroll_ada(gallery, directions)

    def fails(*_: object) -> bool:
        raise sqlite3.OperationalError("disk I/O error")

    if not reads:
        monkeypatch.setattr(sqlite, "erase_deleted", fails)
    with long_reader(database) if reads else nullcontext():
        assert delete_person(gallery, "default", "ada").erased is Erasure.PENDING
    (record,) = caplog.records
    assert record.message.startswith(
        "deleted rows are still" if reads else "the erasure of deleted rows failed"
    )
    assert (record.exc_info is None) == reads


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_fails_leaves_a_deletion_pending(
    database: Path,
    gallery: Gallery,
    directions: Draw,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
) -> None:
    """The deletion itself is in the database: an error would say that it is not."""
    gallery.run_maintenance()
    vectors = enroll_ada(gallery, directions)

    def fails(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(sqlite_file, "os", SimpleNamespace(**vars(os) | {call: fails}))
        assert delete_person(gallery, "default", "ada").erased is Erasure.PENDING
    assert gallery.store.database.eraser.pending_s() > 0
    before = _version(database)
    gallery.run_maintenance()
    assert _version(database) > before, "other connections may have kept pages as they were"
    assert gallery.store.database.eraser.pending_s() == 0
    assert not left_of(vectors, database)


def _version(database: Path) -> int:
    """What changes when other connections have to read their pages again."""
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def test_another_process_erases_what_a_killed_one_left(
    database: Path, gallery: Gallery, directions: Draw
) -> None:
    """It has nothing pending itself, and erases unasked now and then."""
    now = [0.0]
    engine = open_engine(database)
    one = Eraser(engine, backend_of(engine), clock=lambda: now[0])
    one.retry()
    vectors = enroll_ada(gallery, directions)
    with long_reader(database):
        assert delete_person(gallery, "default", "ada").erased is Erasure.PENDING
    now[0] = EVERY_S / 2
    one.retry()
    assert left_of(vectors, database)
    now[0] = EVERY_S * 1.1
    one.retry()
    assert not left_of(vectors, database)
    assert one.pending_s() == 0


def test_a_command_goes_through_all_pages_before_it_ends(
    database: Path, gallery: Gallery, directions: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the database is: a running service does not know of its deletions."""
    enroll_ada(gallery, directions)
    monkeypatch.setattr(eraser, "PAGES_AT_ONCE", 1)
    for limit in ("DELETION_S", "ROUND_S"):
        monkeypatch.setattr(eraser, limit, 0.0)
    command = Store(open_engine(database))
    assert command.persons.delete("default", "ada").erased is Erasure.PENDING
    with long_reader(database):
        assert not command.database.eraser.finish(0.2)
    assert command.database.eraser.finish(60)
    assert command.database.eraser.pending_s() == 0


def test_a_replaced_database_leaves_nothing_behind(
    database: Path, gallery: Gallery, directions: Draw
) -> None:
    bodies = list(dump(open_engine(database)))
    vectors = enroll_ada(gallery, directions)
    load(open_engine(database), iter(bodies), replace=True)
    assert not left_of(vectors, database)


@pytest.mark.parametrize("open_after", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("others", [0, 3])
def test_a_restore_erases_from_indexes_that_nobody_searches(
    database: Path, tmp_path: Path, directions: Draw, others: int, open_after: bool
) -> None:
    """As many changes since the backup as there are collections: the revisions of the backup, each
    raised by one, would have the sum that maintenance knows."""
    gallery = open_with_snapshots(database, tmp_path / "index")
    vectors = directions(2 + others)
    for number in range(others):
        gallery.create_collection(f"c{number}", {})
    enroll_person(gallery, "default", "bob", {}, [template(vectors[0], "0")])
    bodies = list(dump(open_engine(database)))
    for number, vector in enumerate(vectors[1:]):
        enroll_person(gallery, "default", f"p{number}", {}, [template(vector, f"p{number}")])
    removed = [vector.tobytes() for vector in vectors[1:]]
    if not open_after:
        gallery.close()
        gallery = open_with_snapshots(database, tmp_path / "index")
    gallery.run_maintenance()  # saves a snapshot, or knows of it
    assert _kept(tmp_path / "index", removed)
    load(open_engine(database), iter(bodies), replace=True)
    gallery.run_maintenance()
    assert not _kept(tmp_path / "index", removed)
    record = gallery.require("default")
    assert gallery._indexes.replicas[record.key].is_at(position_of(record)), "in memory"


def _kept(folder: Path, vectors: list[bytes]) -> bool:
    """Whether a file of the snapshots has one of these embeddings."""
    everything = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    return any(vector in everything for vector in vectors)


def test_a_deletion_in_postgresql_is_pending(postgres_url: str, directions: Draw) -> None:
    """Until the server's VACUUM; and maintenance has nothing to repeat."""
    gallery: Any = open_gallery(postgres_url)
    enroll_ada(gallery, directions)
    assert delete_person(gallery, "default", "ada").erased is Erasure.PENDING
    gallery.run_maintenance()
    assert gallery.store.database.eraser.pending_s() == 0


def open_with_snapshots(database: Path, folder: Path) -> Gallery:
    engine = open_engine(database)
    migrate(engine)
    index_factory = IndexFactory(
        2, folder, shape=IndexShape(encode_at=16)
    )  # one row is worth a snapshot
    return Gallery(Store(engine), index_factory, SPACE, DIMENSION)


def test_a_snapshot_that_another_process_keeps_is_pending_until_that_follows(
    database: Path, tmp_path: Path, directions: Draw
) -> None:
    owner, other = (open_with_snapshots(database, tmp_path / "index") for _ in range(2))
    owner.create_collection("second", {})
    vectors = directions(4)
    for name in ("default", "second"):
        for number, vector in enumerate(vectors):
            enroll_person(owner, name, f"p{number}", {}, [template(vector, str(number))])
    owner.run_maintenance()  # keeps snapshots, which it owns
    assert delete_person(owner, "default", "p0").erased is Erasure.DONE
    assert delete_person(other, "default", "p1").erased is Erasure.PENDING
    assert delete_collection(other, "second").erased is Erasure.PENDING
    files = list((tmp_path / "index").rglob("rows-*"))
    assert any(vectors[1].tobytes() in file.read_bytes() for file in files)
    owner.run_maintenance()
    files = list((tmp_path / "index").rglob("rows-*"))
    assert files
    assert not any(vectors[1].tobytes() in file.read_bytes() for file in files)
    assert all(file.parent.name == files[0].parent.name for file in files), "second has none"
    assert delete_person(owner, "default", "p2").erased is Erasure.DONE
    owner.create_collection("third", {})
    enroll_person(owner, "third", "p0", {}, [template(vectors[0], "0")])
    assert delete_collection(owner, "third").erased is Erasure.DONE


def test_a_snapshot_that_nobody_can_read_is_removed(
    database: Path, tmp_path: Path, directions: Draw
) -> None:
    """What is in it is not known: nothing could be erased in it."""
    folder = tmp_path / "index"
    first, vectors = open_with_snapshots(database, folder), directions(2)
    enroll_person(first, "default", "ada", {}, [template(vectors[0], "0")])
    first.run_maintenance()
    first.close()
    (manifest,) = folder.rglob("manifest.json")
    manifest.write_bytes(b"torn")
    second = open_with_snapshots(database, folder)
    second.prepare()
    assert delete_person(second, "default", "ada").erased is Erasure.DONE
    assert not list(folder.rglob("rows-*"))
    enroll_person(second, "default", "bob", {}, [template(vectors[1], "1")])
    assert delete_person(second, "default", "bob").erased is Erasure.DONE
    assert not any(vectors[0].tobytes() in file.read_bytes() for file in folder.rglob("rows-*"))
