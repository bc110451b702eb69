"""Copies of deleted rows in the unused parts of SQLite's pages: found, and overwritten."""

import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.store.backends import create_engine, sqlite

ROW_BYTES = 200  # several to a page


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'rows.db'}")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE rows (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE, data BLOB)"
        )
    yield engine
    engine.dispose()


class Table:
    """A table whose rows come and go, with what it must hold and what it must not."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self._random = random.Random(seed)
        self._next = 0
        self.living: dict[int, bytes] = {}
        self.deleted: list[bytes] = []

    def insert(self, count: int) -> None:
        with sqlite.writer(self._engine).begin() as connection:
            for _ in range(count):
                self._next += 1
                self.living[self._next] = self._random.randbytes(ROW_BYTES)
                connection.exec_driver_sql(
                    "INSERT INTO rows (id, name, data) VALUES (?, ?, ?)",
                    (self._next, self._random.randbytes(16).hex(), self.living[self._next]),
                )

    def delete(self, rows: list[int]) -> None:
        with sqlite.writer(self._engine).begin() as connection:
            for row in rows:
                connection.exec_driver_sql("DELETE FROM rows WHERE id = ?", (row,))
                self.deleted.append(self.living.pop(row))

    def churn(self, times: int = 40) -> None:
        """Delete neighbours, so that pages are merged, and insert others."""
        for _ in range(times):
            rows = sorted(self.living)
            first = self._random.randrange(max(1, len(rows) - 50))
            self.delete(rows[first : first + 30 : self._random.choice([1, 2, 3])])
            self.insert(self._random.randrange(40))

    def left(self, database: Path) -> int:
        """Deleted rows of which a part is still in the files."""
        held = b"".join(path.read_bytes() for path in database.parent.glob(f"{database.name}*"))
        return sum(data[: ROW_BYTES // 3] in held for data in self.deleted)

    def check(self) -> None:
        with self._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
            found = connection.exec_driver_sql("SELECT id, data FROM rows")
            assert dict(tuple(row) for row in found) == self.living


def blank_all(engine: Engine, at_once: int = 10) -> None:
    page: int | None = 2
    while page:
        page = sqlite.blank_unused(engine, page, at_once)
        assert page is not None


def with_copies_left(engine: Engine, database: Path) -> Table:
    """A table whose file holds copies of deleted rows; which SQLite leaves depends on chance."""
    for seed in range(60):
        table = Table(engine, seed)
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM rows")
        table.insert(400)
        table.churn()
        assert sqlite.erase_deleted(engine, 1)
        if table.left(database):
            return table
    pytest.fail("SQLite leaves no copies any more: is blank_unused still needed?")


def test_copies_that_secure_delete_leaves_are_overwritten(engine: Engine, tmp_path: Path) -> None:
    table = with_copies_left(engine, tmp_path / "rows.db")
    blank_all(engine)
    assert table.left(tmp_path / "rows.db") == 0
    table.check()


def test_a_connection_does_not_write_an_old_copy_back(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "rows.db"
    table = with_copies_left(engine, database)
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("PRAGMA secure_delete=ON")
    other.execute("PRAGMA cache_size=10000")
    log_is_empty = sqlite._log_is_empty

    def read_every_page(path: Path) -> bool:
        other.execute("SELECT max(data), max(name) FROM rows").fetchall()
        return log_is_empty(path)

    # At the last moment: it keeps the pages as they are now.
    monkeypatch.setattr(sqlite, "_log_is_empty", read_every_page)
    assert sqlite.blank_unused(engine, 2, 1_000) == 0
    other.execute("UPDATE rows SET data = zeroblob(length(data))")  # writes every page of the table
    other.close()
    assert sqlite.erase_deleted(engine, 1)
    assert table.left(database) == 0


def test_nor_does_the_connection_that_overwrote_it(engine: Engine, tmp_path: Path) -> None:
    database = tmp_path / "rows.db"
    table = with_copies_left(engine, database)
    with engine.connect() as connection:  # the only one of the pool, before and after
        connection.exec_driver_sql("SELECT max(data), max(name) FROM rows").all()
    assert sqlite.blank_unused(engine, 2, 1_000) == 0
    with sqlite.writer(engine).begin() as connection:
        connection.exec_driver_sql("UPDATE rows SET data = zeroblob(length(data))")
    assert sqlite.erase_deleted(engine, 1)
    assert table.left(database) == 0


def test_it_waits_for_writers_and_readers_of_an_older_state(engine: Engine, tmp_path: Path) -> None:
    Table(engine, 1).insert(10)
    other = sqlite3.connect(tmp_path / "rows.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert sqlite.blank_unused(engine, 2, 100) is None
    other.execute("ROLLBACK")
    other.execute("BEGIN")
    other.execute("SELECT * FROM rows").fetchall()
    with sqlite.writer(engine).begin() as connection:
        connection.exec_driver_sql("INSERT INTO rows (data) VALUES (x'00')")
    assert sqlite.blank_unused(engine, 2, 100) is None
    other.close()
    assert sqlite.blank_unused(engine, 2, 100) == 0


@pytest.mark.slow
def test_beside_writers_and_readers(engine: Engine, tmp_path: Path) -> None:
    table, stop = Table(engine, 5), threading.Event()
    table.insert(400)

    def read() -> None:
        while not stop.is_set():
            with engine.connect() as connection:
                connection.exec_driver_sql("SELECT sum(length(data)) FROM rows").scalar_one()

    def blank() -> None:
        page = 2
        while not stop.is_set():
            page = sqlite.blank_unused(engine, page, 7) or 2

    threads = [threading.Thread(target=work) for work in (read, read, blank)]
    for thread in threads:
        thread.start()
    table.churn(300)
    stop.set()
    for thread in threads:
        thread.join()
    blank_all(engine)
    assert table.left(tmp_path / "rows.db") == 0
    table.check()
