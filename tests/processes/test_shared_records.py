"""Counts that processes share: here two views of one file, and processes that add at a time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.processes.shared_records import PROBED, SLOTS, SharedRecords, shared_file

ADD = """
import sys
from app.processes.shared_records import SharedRecords
records = SharedRecords(int(sys.argv[1]), int(sys.argv[2]))
for _ in range(500):
    with records.held("entrance") as record:
        record.values[0] += 1
"""


@pytest.fixture
def file() -> Iterator[int]:
    made = shared_file()
    yield made
    os.close(made)


def test_processes_see_what_others_wrote(file: int) -> None:
    one, other = SharedRecords(file, 0), SharedRecords(file, 1)
    with one.held("entrance") as record:
        assert (record.values, record.elsewhere, record.here) == ([0.0] * 4, 0, 0)
        record.values[1], record.here = 2.5, 3
    with other.held("entrance") as record:
        assert (record.values[1], record.elsewhere, record.here) == (2.5, 3, 0)
        record.here = 2
    with other.held("exit") as record:
        assert (record.values[1], record.elsewhere) == (0.0, 0)
    with one.held("entrance") as record:
        assert (record.elsewhere, record.here) == (2, 3)


def test_what_a_dead_process_answered_is_forgotten(file: int) -> None:
    one, other = SharedRecords(file, 0), SharedRecords(file, 1)
    for records in (one, other):
        with records.held("entrance") as record:
            record.here = 4
    SharedRecords(file).clear(0)
    with other.held("entrance") as record:
        assert (record.elsewhere, record.here) == (0, 4)


def test_an_error_writes_too(file: int) -> None:
    records = SharedRecords(file, 0)
    with pytest.raises(ValueError, match="refused"):
        refuse(records)
    with records.held("entrance") as record:
        assert record.values[0] == 1


def refuse(records: SharedRecords) -> None:
    with records.held("entrance") as record:
        record.values[0] = 1
        raise ValueError("refused")


def test_more_names_than_places(file: int) -> None:
    """The longest idle ones begin anew; one that is in use does not."""
    records = SharedRecords(file, 0)
    with records.held("busy") as record:
        record.here = 1
    for number in range(SLOTS + 2 * PROBED):
        with records.held(f"user {number}") as record:
            record.values[1] = number + 1.0
    with records.held("busy") as record:
        assert record.here == 1
    with records.held(f"user {SLOTS + 2 * PROBED - 1}") as record:
        assert record.values[1] == SLOTS + 2 * PROBED


def test_nothing_is_lost_between_processes(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = ADD.replace("records =", "from app.processes import shared_records\n"
                          "shared_records.WAIT_S = 60.0\nrecords =", 1)  # fmt: skip
    started = [
        subprocess.Popen([sys.executable, "-c", patient, str(file), str(column)], pass_fds=[file],
                         cwd=Path(__file__).parents[2])
        for column in range(3)
    ]  # fmt: skip
    assert [one.wait(60) for one in started] == [0, 0, 0]
    with SharedRecords(file, 3).held("entrance") as record:
        assert record.values[0] == 1500
