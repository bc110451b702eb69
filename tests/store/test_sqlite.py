"""What is particular to SQLite: durability, bytes left on disk, and its ways to fail."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy.exc import OperationalError

from app.errors import DatabaseError, StoreFull, StoreUnavailable
from app.gallery.gallery import Gallery
from app.store.backends import create_engine, missing_file
from app.store.backends.sqlite import advice, is_full
from app.store.records import NewTemplate
from app.store.store import Store
from tests.gallery.conftest import KEEPS_CROPS, open_engine, open_gallery, template
from tests.writing import delete_person, enroll_person

Draw = Callable[[int], NDArray[np.float32]]


def test_durable_settings_are_on(database: Path) -> None:
    engine = open_engine(database)
    with engine.connect() as connection:

        def pragma(name: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 2  # FULL
        assert pragma("foreign_keys") == 1
        assert pragma("secure_delete") == 1


def test_deleted_embeddings_leave_no_bytes_in_the_database(
    database: Path, gallery: Gallery, directions: Draw
) -> None:
    vectors = directions(50)
    enroll_person(
        gallery, "default", "ada", {}, [template(v, str(i)) for i, v in enumerate(vectors)]
    )
    assert vectors[20].tobytes() in everything_on_disk(database)
    delete_person(gallery, "default", "ada")
    left = everything_on_disk(database)
    assert not any(vector.tobytes() in left for vector in vectors)


def everything_on_disk(database: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(database.parent.iterdir()))


def test_a_full_disk_is_507_and_loses_nothing(gallery: Gallery, directions: Draw) -> None:
    vectors = directions(2)
    gallery.store.collections.update("default", None, KEEPS_CROPS)
    enroll_person(gallery, "default", "ada", {}, [template(vectors[0], "a")])
    with gallery.store.database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        # SQLite's own limit answers as a full disk does, without filling one; it belongs to the
        # connection, which the pool hands out next.
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    big = NewTemplate(vectors[1], "b", crop=b"x" * 100_000)
    with pytest.raises(StoreFull, match="nothing was changed"):
        enroll_person(gallery, "default", "bob", {}, [big])
    assert [p.person_id for p in gallery.store.persons.page("default", None, 9).items] == ["ada"]
    gallery.store.close()
    enroll_person(gallery, "default", "bob", {}, [big])
    assert gallery.identify("default", vectors[1:], 1).rows[0][0].face.person_id == "bob"


def test_a_locked_database_is_503(
    database: Path, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.backends.sqlite.BUSY_TIMEOUT_S", 0.05)
    store = Store(open_engine(database))
    with closing(sqlite3.connect(database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match=r"Nothing was changed\. Another process held"):
            store.persons.create("default", "ada", {})
        assert store.collections.get("default").name == "default"  # reads go on
        holder.execute("ROLLBACK")
    assert store.persons.create("default", "ada", {}).person_id == "ada"


def test_a_read_only_database_is_503_and_says_what_to_do(gallery: Gallery) -> None:
    with gallery.store.database.engine.connect() as connection:
        # Answers as a disk mounted read-only does; root, too, gets to see it.
        connection.exec_driver_sql("PRAGMA query_only=ON")
    with pytest.raises(StoreUnavailable, match="mounted writable"):
        gallery.store.persons.create("default", "ada", {})
    assert gallery.store.collections.get("default").name == "default"


def test_a_folder_that_is_gone_is_503_and_says_what_to_do(database: Path, gallery: Gallery) -> None:
    gallery.store.close()
    database.parent.rename(database.parent.with_name("elsewhere"))
    with pytest.raises(StoreUnavailable, match="moved away or replaced"):
        gallery.store.database.ping()


@pytest.mark.parametrize(
    ("code", "full", "words"),
    [
        (sqlite3.SQLITE_FULL, True, ""),
        (sqlite3.SQLITE_IOERR_SHMSIZE, True, ""),
        (sqlite3.SQLITE_IOERR_WRITE, False, "Check the disk"),
        (sqlite3.SQLITE_IOERR_FSYNC, False, "Check the disk"),
        (sqlite3.SQLITE_READONLY_ROLLBACK, False, "mounted writable"),
        (sqlite3.SQLITE_CANTOPEN_ISDIR, False, "cannot be opened"),
        (sqlite3.SQLITE_CORRUPT_INDEX, False, "restore a backup"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, False, "Another process"),
        (sqlite3.SQLITE_PROTOCOL, False, "the log has the reason"),
    ],
)
def test_failures_are_distinguished_by_their_codes(code: int, full: bool, words: str) -> None:
    error = sqlite3.OperationalError("in some words")
    error.sqlite_errorcode = code
    assert is_full(error) is full
    assert words in advice(error)


def test_the_files_are_for_their_owner_alone(database: Path, directions: Draw) -> None:
    gallery = open_gallery(database)
    enroll_person(gallery, "default", "ada", {}, [template(directions(1)[0], "a")])
    modes = {path.name: path.stat().st_mode & 0o777 for path in database.parent.glob("likeness*")}
    assert set(modes.values()) == {0o600}, modes
    assert len(modes) == 5


class TestAFileThatIsNotInPlace:
    """What is written into it is not in the database that the next start opens."""

    def refuse(self, gallery: Gallery) -> None:
        """Writes are refused, by connections that are open and by new ones."""
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"Nothing was changed\. The database file"):
                gallery.store.persons.create("default", "lost", {})
            with pytest.raises(StoreUnavailable, match="moved away or replaced"):
                gallery.store.database.ping()
            assert gallery.store.database.refusal == "store_unavailable"
            gallery.store.close()

    def test_moved_away_and_put_back(self, database: Path, gallery: Gallery) -> None:
        elsewhere = database.with_name("elsewhere.db")
        database.rename(elsewhere)
        assert gallery.store.collections.get("default").name == "default", "reads go on"
        self.refuse(gallery)
        assert not database.exists(), "nor was an empty one made in its place"
        elsewhere.rename(database)
        gallery.store.database.ping()
        assert gallery.store.persons.create("default", "ada", {}).person_id == "ada"
        assert gallery.store.database.refusal is None

    def test_replaced_by_a_copy(self, database: Path, gallery: Gallery) -> None:
        gallery.store.persons.create("default", "ada", {})
        copy = database.with_name("copy.db")
        copy.write_bytes(database.read_bytes())
        copy.rename(database)
        self.refuse(gallery)
        restarted = open_gallery(database)
        assert restarted.store.persons.create("default", "bob", {}).person_id == "bob"

    def test_moved_in_the_middle_of_a_write(self, database: Path, gallery: Gallery) -> None:
        store = gallery.store
        lost = pytest.raises(StoreUnavailable, match=r"kept or not: send the request again\. The d")
        with lost, store.database.writing():
            database.rename(database.with_name("elsewhere.db"))


class TestOpening:
    def test_a_file_that_is_no_database(self, database: Path) -> None:
        database.write_bytes(b"this is not a database, it is a text of some length" * 50)
        with pytest.raises(DatabaseError, match="cannot be opened"):
            open_gallery(database)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with pytest.raises(DatabaseError, match="LIKENESS_DATA_DIR"):
            open_gallery(tmp_path / "data" / "likeness.db")

    def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("")
        with pytest.raises(DatabaseError, match="LIKENESS_DATA_DIR"):
            open_gallery(tmp_path / "data" / "likeness.db")

    @pytest.mark.parametrize("url", ["nonsense", "mysql://host/db", "postgresql://u:a@h:cret/db"])
    def test_a_url_that_cannot_be_served(self, url: str) -> None:
        with pytest.raises(DatabaseError) as caught:
            create_engine(url)
        assert "cret" not in caught.value.detail

    def test_a_file_in_the_working_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A start in another folder would make another one."""
        monkeypatch.chdir(tmp_path)
        for ask in (create_engine, missing_file):
            with pytest.raises(DatabaseError, match=f"sqlite:///{tmp_path}/x.db"):
                ask("sqlite:///x.db")
            with pytest.raises(DatabaseError, match="in the working folder"):
                ask("sqlite:///file:x.db")  # without uri=true, a name like any other
            for name in ("file:x.db?", "file:?", "file:x/y.db?mode=rwc&", "file:./x.db?",
                         "file://elsewhere/x.db?", f"file:{tmp_path}/a%3fb.db?",
                         f"file:{tmp_path}/a%2500.db?", f"file:{tmp_path}/a%23.db?"):  # fmt: skip
                with pytest.raises(DatabaseError, match=r"sqlite:///file:/absolute/"):
                    ask(f"sqlite:///{name}uri=true")
        with pytest.raises(DatabaseError, match="No database is at"):
            create_engine(f"sqlite:///file:{tmp_path}/x.db?mode=rw&uri=true")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("prefix", ["file:", "file://", "file:///", "file://localhost"])
    def test_a_uri_with_the_whole_path(self, tmp_path: Path, prefix: str) -> None:
        """The file is private, is not replaced unseen, and unused parts of its pages are zeroed."""
        folder = tmp_path / "data folder"
        url = f"sqlite:///{prefix}{tmp_path}/data%20folder/x.db?mode=rwc&uri=true"
        missing = missing_file(url)
        assert missing is not None
        assert missing.resolve() == folder / "x.db"
        engine = create_engine(url)
        engine.connect().close()
        assert (folder / "x.db").stat().st_mode & 0o077 == 0
        (folder / "x.db").rename(folder / "moved.db")
        engine.dispose()
        with pytest.raises(OperationalError, match="moved away"):
            engine.connect()

    @pytest.mark.parametrize(
        "url",
        [
            "sqlite://",
            "sqlite:///:memory:",
            "sqlite:///file::memory:?cache=shared&uri=true",
            "sqlite:///file:gallery?mode=memory&cache=shared&uri=true",
            "sqlite:///file:/gallery?vfs=memdb&uri=true",
        ],
    )
    def test_a_database_in_memory(self, url: str) -> None:
        """Each thread would have another one: the service would start, and find no tables."""
        with pytest.raises(DatabaseError, match="in memory"):
            create_engine(url)
