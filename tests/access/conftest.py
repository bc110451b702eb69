"""Stores of access keys on every engine, with a clock that tests move."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.access.registry import AccessRegistry
from app.access.store import AccessKeyStore
from app.store.backends import create_engine
from app.store.database import Database
from app.store.schema import migrate

PEPPER = bytes(range(32))


class Clock:
    """The time of day, and seconds that only rise."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
        self.seconds = 100.0

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Any, clock: Clock) -> Iterator[AccessKeyStore]:
    server = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    url = server.new_database(migrated=True) if server else f"sqlite:///{tmp_path / 'likeness.db'}"
    engine = create_engine(url)
    migrate(engine)
    yield AccessKeyStore(Database(engine, lambda: clock.now), PEPPER)
    engine.dispose()
    if server:
        server.drop_database(url)


@pytest.fixture
def registry(store: AccessKeyStore, clock: Clock) -> AccessRegistry:
    return AccessRegistry(store, PEPPER, lambda: clock.seconds, lambda: clock.now)
