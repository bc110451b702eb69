"""One of two processes sleeps (SIGSTOP) while the change log is pruned past what it has."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.gallery_process import GalleryProcess

pytestmark = pytest.mark.slow
PEOPLE = 40


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'likeness.db'}"
    return request.getfixturevalue("postgres").new_database()


def test_a_process_that_slept_builds_from_the_database(url: str, tmp_path: Path) -> None:
    # One that is stopped in the middle of a write would hold the lock for good: neither prunes
    # unasked.
    awake = GalleryProcess(url, tmp_path / "awake", prunes=False)
    asleep = GalleryProcess(url, tmp_path / "asleep", prunes=False)
    people = [f"p{number}" for number in range(PEOPLE)]
    for person in people[: PEOPLE // 2]:
        assert awake.ask("enroll", person, 0)[0] == "done"
    assert found(asleep, people) == people[: PEOPLE // 2]
    assert asleep.process.pid is not None
    os.kill(asleep.process.pid, signal.SIGSTOP)
    for person in people[: PEOPLE // 2 : 2]:
        assert awake.ask("delete", person, 0)[0] == "done"
    for person in people[PEOPLE // 2 :]:
        assert awake.ask("enroll", person, 0)[0] == "done"
    assert awake.ask("prune", "", 0)[0] == "done"
    expected = people[1 : PEOPLE // 2 : 2] + people[PEOPLE // 2 :]
    assert found(awake, people) == expected
    os.kill(asleep.process.pid, signal.SIGCONT)
    assert found(asleep, people) == expected
    for process in (awake, asleep):
        process.kill()


def found(process: GalleryProcess, people: list[str]) -> list[str]:
    """Those of the people whom a search of this process finds."""
    hits = {person: process.ask("find", person, 0) for person in people}
    return [p for p, (_, hit) in hits.items() if hit[0] == p and hit[1] > 0.999]
