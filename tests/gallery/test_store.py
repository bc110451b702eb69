"""The SQL truth: what is acknowledged is on disk, what is deleted leaves nothing behind."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import inspect

from app.errors import DatabaseError, StoreFull, StoreUnavailable
from app.gallery.backends import create_engine
from app.gallery.gallery import Gallery
from app.gallery.schema import migrate
from app.gallery.store import SqlStore
from app.gallery.tables import metadata
from tests.gallery.conftest import DIMENSION, SPACE, open_engine, open_gallery, template

Draw = Callable[[int], NDArray[np.float32]]


def test_migrations_make_the_tables_the_code_knows(database: Path) -> None:
    engine = open_engine(database)
    migrate(engine)
    found = inspect(engine)
    for table in metadata.sorted_tables:
        columns = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
        assert columns == {column.name: column.nullable for column in table.columns}
        unique = {tuple(u["column_names"]) for u in found.get_unique_constraints(table.name)}
        wanted = {
            tuple(column.name for column in one.columns)
            for one in table.constraints
            if type(one).__name__ == "UniqueConstraint"
        }
        assert unique == wanted
        targets = {key["referred_table"] for key in found.get_foreign_keys(table.name)}
        assert targets == {key.column.table.name for key in table.foreign_keys}


def test_durable_settings_are_on(database: Path) -> None:
    engine = open_engine(database)
    with engine.connect() as connection:

        def pragma(name: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 2  # FULL
        assert pragma("foreign_keys") == 1
        assert pragma("secure_delete") == 1


def test_the_clock_is_the_callers(database: Path, gallery: Gallery) -> None:
    moment = datetime(2001, 2, 3, 4, 5, 6, tzinfo=UTC)
    store = SqlStore(open_engine(database), clock=lambda: moment)
    assert store.create_person("default", "ada", {}).created_at == moment


def test_enrolment_is_all_or_nothing(gallery: Gallery, directions: Draw) -> None:
    vectors = directions(2)
    broken = template(vectors[1], None)  # type: ignore[arg-type]  # the database refuses NULL
    with pytest.raises(Exception, match="NOT NULL"):
        gallery.enroll("default", "ada", {}, [template(vectors[0], "a"), broken])
    assert gallery.store.persons("default", None, 10).items == []
    assert gallery.identify("default", vectors[:1], 1).rows == [[]]


def test_deleted_embeddings_leave_no_bytes_in_the_database(
    database: Path, gallery: Gallery, directions: Draw
) -> None:
    vectors = directions(50)
    gallery.enroll("default", "ada", {}, [template(v, str(i)) for i, v in enumerate(vectors)])
    assert vectors[20].tobytes() in everything_on_disk(database)
    gallery.delete_person("default", "ada")
    left = everything_on_disk(database)
    assert not any(vector.tobytes() in left for vector in vectors)


def test_more_keys_than_a_statement_takes(gallery: Gallery, directions: Draw) -> None:
    (stored,) = gallery.enroll("default", "ada", {}, [template(directions(1)[0], "a")])
    key = stored.face.template_key
    assert list(gallery.store.faces_by_key([*range(10**6, 10**6 + 50_000), key])) == [key]


def everything_on_disk(database: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(database.parent.iterdir()))


def test_a_killed_process_loses_nothing_acknowledged(database: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from tests.gallery.conftest import open_gallery, template\n"
        "gallery = open_gallery(Path(sys.argv[1]))\n"
        "vector = np.eye(16, dtype=np.float32)[3]\n"
        "gallery.enroll('default', 'ada', None, [template(vector, 'a')])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", code, str(database)], cwd=root, check=False)
    assert killed.returncode == -9
    row = open_gallery(database).identify("default", np.eye(16, dtype=np.float32)[3:4], 1).rows[0]
    assert row[0].face.person_id == "ada"


def test_a_full_disk_is_507_and_loses_nothing(gallery: Gallery, directions: Draw) -> None:
    vectors = directions(2)
    gallery.enroll("default", "ada", {}, [template(vectors[0], "a")])
    with gallery.store._database.engine.connect() as connection:  # type: ignore[attr-defined]
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        # SQLite's own limit answers as a full disk does, without filling one; it belongs to the
        # connection, which the pool hands out next.
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    big = {"note": "x" * 100_000}
    with pytest.raises(StoreFull, match="nothing was changed"):
        gallery.enroll("default", "bob", big, [template(vectors[1], "b")])
    assert [p.person_id for p in gallery.store.persons("default", None, 9).items] == ["ada"]
    gallery.store.close()
    gallery.enroll("default", "bob", big, [template(vectors[1], "b")])
    assert gallery.identify("default", vectors[1:], 1).rows[0][0].face.person_id == "bob"


def test_a_locked_database_is_503(
    database: Path, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gallery.backends.sqlite.BUSY_TIMEOUT_S", 0.05)
    store = SqlStore(open_engine(database))
    with closing(sqlite3.connect(database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            store.create_person("default", "ada", {})
        assert store.collection("default").name == "default"  # reads go on
        holder.execute("ROLLBACK")
    assert store.create_person("default", "ada", {}).person_id == "ada"


class TestOpening:
    def test_a_file_that_is_no_database(self, database: Path) -> None:
        database.write_bytes(b"this is not a database, it is a text of some length" * 50)
        with pytest.raises(DatabaseError, match="cannot be opened"):
            open_gallery(database)

    def test_a_database_from_the_future(self, database: Path) -> None:
        open_gallery(database).store.close()
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(DatabaseError, match="newer version"):
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

    @pytest.mark.parametrize("url", ["nonsense", "mysql://host/db"])
    def test_a_url_that_cannot_be_served(self, url: str) -> None:
        with pytest.raises(DatabaseError):
            create_engine(url)

    def test_many_processes_open_a_new_database_at_once(self, database: Path) -> None:
        code = (
            "import sys; from pathlib import Path\n"
            "from tests.gallery.conftest import open_gallery\n"
            "open_gallery(Path(sys.argv[1]))\n"
        )
        root = Path(__file__).parents[2]
        starts = [
            subprocess.Popen([sys.executable, "-c", code, str(database)], cwd=root)
            for _ in range(4)
        ]
        assert [start.wait(60) for start in starts] == [0, 0, 0, 0]
        assert open_gallery(database).store.collection("default").embedding_space == SPACE
        assert open_gallery(database).store.collection("default").dimension == DIMENSION
