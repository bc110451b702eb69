"""Real SQLite files and real FAISS indexes, with directions drawn from a seeded generator."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import Engine

from app.gallery.backends import create_engine
from app.gallery.gallery import Gallery
from app.gallery.index import FlatIndex
from app.gallery.ports import NewTemplate
from app.gallery.schema import migrate
from app.gallery.store import SqlStore

DIMENSION = 16
SPACE = "es-test"


OPENED: list[Engine] = []


@pytest.fixture(autouse=True)
def close_databases() -> Iterator[None]:
    """End every test without open connections."""
    yield
    while OPENED:
        OPENED.pop().dispose()


def open_engine(database: Path) -> Engine:
    """An engine over a database file, closed when the test ends."""
    OPENED.append(create_engine(f"sqlite:///{database}"))
    return OPENED[-1]


def open_gallery(database: Path, space: str = SPACE) -> Gallery:
    """A gallery over a database file, as a starting process opens it."""
    engine = open_engine(database)
    migrate(engine)
    return Gallery(SqlStore(engine), FlatIndex, space, DIMENSION)


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


def template(vector: NDArray[np.float32], digest: str) -> NewTemplate:
    return NewTemplate(vector, digest)
