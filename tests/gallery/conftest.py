"""Real databases and real FAISS indexes, with directions drawn from a seeded generator."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine

from app.gallery.gallery import Gallery
from app.gallery.replica import Replica
from app.index.certified.index import CertifiedIndex
from app.index.certified.persistent import PersistentIndex
from app.index.factory import IndexFactory
from app.store.backends import create_engine
from app.store.records import NewTemplate
from app.store.schema import migrate
from app.store.store import Store

DIMENSION = 16
SPACE = "es-test"


OPENED: list[Engine] = []


@pytest.fixture(autouse=True)
def close_databases() -> Iterator[None]:
    """End every test without open connections."""
    yield
    while OPENED:
        OPENED.pop().dispose()


def open_engine(database: Path | str) -> Engine:
    """An engine over an SQLite file or a URL, closed when the test ends."""
    OPENED.append(create_engine(database if isinstance(database, str) else f"sqlite:///{database}"))
    return OPENED[-1]


# The policy of a collection whose aligned faces are stored.
KEEPS_CROPS = {"keep_crops": True}


def open_store(url: str, **options: Any) -> Store:
    """A store over a database, as a starting process opens it."""
    engine = open_engine(url)
    migrate(engine)
    return Store(engine, **options)


def open_gallery(database: Path | str, space: str = SPACE) -> Gallery:
    """A gallery over an SQLite file or a URL, as a starting process opens it."""
    engine = open_engine(database)
    migrate(engine)
    return Gallery(Store(engine), IndexFactory(2), space, DIMENSION)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without a row: what uses it is a contract that every engine keeps.
    `migrate` it before use, which has nothing to do in PostgreSQL's."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'likeness.db'}"
    else:
        yield from fresh_postgres(request.getfixturevalue("postgres"))


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table, for tests of migrations."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'likeness.db'}"
    else:
        yield from fresh_postgres(request.getfixturevalue("postgres"), migrated=False)


@pytest.fixture
def postgres_url(postgres: Any) -> Iterator[str]:
    """The URL of a PostgreSQL database with this version's tables and no row."""
    yield from fresh_postgres(postgres)


def fresh_postgres(server: Any, *, migrated: bool = True) -> Iterator[str]:
    url = server.new_database(migrated=migrated)
    yield url
    server.drop_database(url)


@pytest.fixture
def store(engine_url: str) -> Store:
    """A store over every engine, with the collection `default`, which keeps crops."""
    store = open_store(engine_url)
    store.collections.create("default", SPACE, DIMENSION, {}, KEEPS_CROPS)
    return store


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "likeness.db"


@pytest.fixture
def gallery(database: Path) -> Gallery:
    return open_gallery(database)


@pytest.fixture
def directions() -> Callable[[int], NDArray[np.float32]]:
    """Random unit vectors (n, 16)."""
    generator = np.random.default_rng(7)

    def draw(count: int) -> NDArray[np.float32]:
        vectors = generator.normal(size=(count, DIMENSION)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return draw


def certified_of(replica: Replica) -> CertifiedIndex:
    """The certified index in memory of an open collection."""
    assert isinstance(replica.index, PersistentIndex)
    return replica.index.searcher


def template(vector: NDArray[np.float32], digest: str) -> NewTemplate:
    return NewTemplate(vector, digest)
