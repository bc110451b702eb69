"""A lock that also keeps the other processes out: here two objects over one file."""

from pathlib import Path

import pytest

from app.locks import new_lock
from app.processes.one_process_lock import OneProcessLock


def lock(path: Path) -> OneProcessLock:
    return OneProcessLock(new_lock("services.calibrating"), path)


def test_one_at_a_time(tmp_path: Path) -> None:
    one, other = lock(tmp_path / "examining"), lock(tmp_path / "examining")
    assert one.acquire(blocking=False)
    assert one.locked()
    assert not one.acquire(blocking=False)
    assert not other.acquire(blocking=False)
    assert not other.locked()
    with pytest.raises(BlockingIOError), other:
        pass
    one.release()
    with other:
        assert not one.acquire(blocking=False)
    assert one.acquire(blocking=False)
    one.release()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """The lock is that of the process then."""
    one = lock(tmp_path / "absent" / "examining")
    assert one.acquire(blocking=False)
    assert not one.acquire(blocking=False)
    one.release()
