"""One database: what all stores of a process share."""

from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from app.errors import StoreUnavailable
from app.store.backends import create_engine
from app.store.database import Database
from app.store.schema import migrate
from app.store.sql.tables import calibrations, collections
from app.store.store import Store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "likeness.db"


@pytest.fixture
def store(file: Path) -> Store:
    engine = create_engine(f"sqlite:///{file}")
    migrate(engine)
    return Store(engine)


def test_the_error_of_the_last_write_is_known(store: Store, file: Path) -> None:
    """Readiness shows it. A database object of its own, as access keys have, keeps its own."""
    apart = Database(store.database.engine)
    moved = file.rename(file.with_name("moved.db"))
    with pytest.raises(StoreUnavailable):
        store.collections.create("new", "es-test", 4, {})
    assert (store.database.refusal, apart.refusal) == ("store_unavailable", None)
    with pytest.raises(StoreUnavailable):
        store.database.ping()
    moved.rename(file)
    with apart.writing():
        pass
    assert store.database.refusal == "store_unavailable"
    store.collections.create("new", "es-test", 4, {})
    assert store.database.refusal is None


def test_a_transaction_is_kept_whole_or_not_at_all(store: Store) -> None:
    """Also over the tables of several stores."""
    store.collections.create("one", "es-test", 4, {})
    key = store.collections.get("one").key
    row = {"collection": key, "calibration_id": "c", "created_at": store.database.clock()}

    def fail_halfway() -> None:
        with store.database.writing() as connection:
            connection.execute(insert(calibrations).values(**row, content={}))
            connection.execute(collections.update().values(calibration_id="c"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert store.collections.get("one").calibration_id is None
    with store.database.reading() as connection:
        assert connection.execute(select(calibrations)).all() == []


def test_a_reading_transaction_sees_one_state(store: Store) -> None:
    with store.database.reading() as connection:
        before = connection.execute(select(collections.c.name)).all()
        store.collections.create("meanwhile", "es-test", 4, {})
        assert connection.execute(select(collections.c.name)).all() == before
    assert store.collections.get("meanwhile").name == "meanwhile"


def test_a_single_statement_needs_no_transaction(store: Store) -> None:
    """It leaves none open, in which the connection would not see later writes."""
    with store.database.reading_once() as connection:
        before = connection.execute(select(collections.c.name)).all()
        assert not connection.connection.in_transaction  # type: ignore[attr-defined]
        store.collections.create("meanwhile", "es-test", 4, {})
        assert len(connection.execute(select(collections.c.name)).all()) == len(before) + 1


def test_connections_of_single_statements_stay_open(store: Store) -> None:
    with store.database.reading_once() as connection:
        first = connection
    with store.database.reading_once() as connection:
        assert connection is first
        with store.database.reading_once() as another:  # of another thread, in a service
            assert another is not first


def test_after_an_error_such_a_connection_is_closed(store: Store) -> None:
    with pytest.raises(StoreUnavailable), store.database.reading_once() as connection:
        connection.execute(text("SELECT * FROM nothing"))
    assert connection.closed
    assert store.collections.create("new", "es-test", 4, {}).name == "new"


def test_a_closed_database_has_no_such_connections(store: Store) -> None:
    with store.database.reading_once() as connection:
        pass
    store.database.close()
    assert connection.closed
