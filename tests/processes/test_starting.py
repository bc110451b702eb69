"""What several processes share of one service's limits."""

import os
import subprocess
import sys

import pytest

from app.processes import starting
from app.processes.starting import divided, process_count
from app.settings import MIB, Settings


@pytest.mark.parametrize(("cores", "count"), [(1, 1), (3, 1), (4, 1), (8, 2), (16, 4), (31, 7)])
def test_auto_is_one_process_for_four_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, count: int
) -> None:
    monkeypatch.setattr(starting, "usable_cores", lambda: cores)
    assert process_count(Settings(processes="auto")) == count


def test_one_process_unless_more_are_asked_for() -> None:
    assert process_count(Settings()) == 1
    assert process_count(Settings(processes=3)) == 3


@pytest.mark.parametrize("value", [0, -1, 65, "many", 1.5])
def test_no_other_numbers(value: object) -> None:
    with pytest.raises(ValueError, match="processes"):
        Settings(processes=value)  # type: ignore[arg-type]


def test_limits_are_divided() -> None:
    settings = Settings(
        workers=16, max_pending=64, max_pending_bytes=512 * MIB, max_decode_bytes=4096 * MIB,
        max_connections=1024, max_index_bytes=4096 * MIB,
    )  # fmt: skip
    assert divided(settings, 4) == {
        "workers": 4,
        "import_workers": 8,  # of the whole: one process imports
        "max_pending": 16,
        "max_pending_bytes": 128 * MIB,
        "max_decode_bytes": 1024 * MIB,
        "max_connections": 256,
        "max_index_bytes": 1024 * MIB,
    }


def test_each_process_can_work() -> None:
    found = divided(Settings(workers=1, max_pending=1, max_decode_bytes=100 * MIB), 8)
    assert (found["workers"], found["import_workers"], found["max_pending"]) == (2, 1, 2)
    assert found["max_decode_bytes"] == 100 * MIB


def test_a_service_serves_on_where_nobody_reads_its_address() -> None:
    read, write = os.pipe()
    os.close(read)
    program = "from app.processes.starting import announce; announce('ready'); announce('ready')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 0
    assert done.stderr == "the service is ready, which cannot be printed\n"
