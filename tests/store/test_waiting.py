"""A database server that starts later than the service does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from app.errors import DatabaseError
from app.store.backends import LOG_EVERY_S, await_database
from app.store.schema import migrate
from tests.gallery.conftest import open_engine
from tests.ports import free_port
from tests.postgres import PostgresServer

AWAY = "postgresql://likeness:secret@127.0.0.1:1/likeness"


class Clock:
    """Time that passes by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_an_end_is_put_to_the_waiting(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    await_database(open_engine(AWAY), 60, clock, clock.sleep)
    assert clock.now == 60
    assert len(caplog.records) == 60 / LOG_EVERY_S
    assert "secret" not in str([record.__dict__ for record in caplog.records])
    with pytest.raises(DatabaseError, match="Check that the server runs"):
        migrate(open_engine(AWAY))


def test_nothing_is_waited_for_without_time(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    await_database(open_engine(AWAY), 0, clock, clock.sleep)
    assert (clock.now, caplog.records) == (0, [])


def never(_seconds: float) -> None:
    pytest.fail("a server that answers is not waited for")


@pytest.mark.parametrize("wrong", ["likeness@/absent", "nobody_known@/postgres"])
def test_what_waiting_would_not_help_is_reported_at_once(
    postgres: PostgresServer, wrong: str
) -> None:
    """A database that is not there, a user that is not there; a password is refused likewise."""
    engine = open_engine(f"postgresql://{wrong}?host={postgres.folder}")
    await_database(engine, 60, sleep=never)
    with pytest.raises(DatabaseError, match="does not exist"):
        migrate(engine)


def test_a_file_is_never_waited_for(database: Path) -> None:
    await_database(open_engine(database), 60, sleep=never)


@pytest.mark.slow
def test_a_service_that_starts_before_its_server(tmp_path: Path, postgres: PostgresServer) -> None:
    url, port = postgres.new_database(), free_port()
    environment = {
        **os.environ, "LIKENESS_DATA_DIR": str(tmp_path), "LIKENESS_PORT": str(port),
        "LIKENESS_DATABASE_URL": url,
    }  # fmt: skip
    likeness = Path(sys.executable).parent / "likeness"
    postgres.stop()
    with subprocess.Popen(
        [likeness, "serve"], env=environment, stderr=subprocess.PIPE, text=True
    ) as service:
        try:
            assert service.stderr is not None
            said = iter(service.stderr.readline, "")
            assert any("does not accept connections yet" in line for line in said)
            postgres.start()
            assert is_ready(port)
        finally:
            if postgres._process is None:
                postgres.start()
            service.kill()
            service.communicate()


def is_ready(port: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False
