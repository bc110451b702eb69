"""Several processes over one database: what one acknowledges, all others answer by at once."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.chaos.gallery_process import (
    PERSONS,
    PROCESSES,
    VECTORS,
    GalleryProcess,
    Ledger,
    assert_kept,
)

pytestmark = pytest.mark.slow
OPERATIONS = 60  # of each of four clients


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'likeness.db'}"
    return request.getfixturevalue("postgres").new_database()


@pytest.mark.parametrize("processes", PROCESSES)
def test_read_your_writes_everywhere(url: str, tmp_path: Path, processes: int) -> None:
    galleries = [GalleryProcess(url, tmp_path / "index") for _ in range(processes)]
    ledgers = [Ledger() for _ in range(4)]
    failures: list[object] = []

    def client(name: int) -> None:
        random = np.random.default_rng(name)
        for _ in range(OPERATIONS):
            person = f"{name}-{random.integers(PERSONS)}"
            number = int(random.integers(VECTORS))
            action = "delete" if random.random() < 0.3 else "enroll"
            ledgers[name].begin(action, person, number)
            outcome = galleries[random.integers(processes)].ask(action, person, number)
            ledgers[name].end(action, person, number, outcome)
            (state,) = ledgers[name].states(person)
            for other in galleries:
                _, found = other.ask("find", person, number)
                if (found[0] == person and found[1] > 0.999) != (number in state):
                    failures.append((action, person, number, found, state))

    clients = [threading.Thread(target=client, args=(name,)) for name in range(4)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert failures == []
    for process in galleries:
        process.kill()
    together = Ledger({k: v for ledger in ledgers for k, v in ledger.allowed.items()})
    assert_kept(url, tmp_path / "index", together, [str(name) for name in range(4)])
