"""Compiled networks in a folder: whole or not at all, bounded, private, shared by processes."""

import os
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from app.disk import own
from app.inference.compiled_networks import SUFFIX, CompiledNetworks


@pytest.fixture
def kept(tmp_path: Path) -> CompiledNetworks:
    return CompiledNetworks(tmp_path / "engines" / "openvino")


def names(kept: CompiledNetworks) -> set[str]:
    return {path.stem for path in kept.folder.glob(f"*{SUFFIX}")}


def test_what_was_kept_is_loaded(kept: CompiledNetworks) -> None:
    assert kept.load("a") is None
    kept.keep("a", b"network")
    assert kept.load("a") == b"network"


def test_only_the_owner_can_read_them(kept: CompiledNetworks) -> None:
    kept.keep("a", b"network")
    assert {path.stat().st_mode & 0o077 for path in [kept.folder, *kept.folder.iterdir()]} == {0}


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_a_damaged_file_is_not_loaded(kept: CompiledNetworks, damage: bytes) -> None:
    kept.keep("a", b"network" * 10)
    (kept.folder / f"a{SUFFIX}").write_bytes(damage)
    assert kept.load("a") is None
    kept.keep("a", b"again")
    assert kept.load("a") == b"again"


def test_a_changed_bit_is_found(kept: CompiledNetworks) -> None:
    kept.keep("a", b"network" * 10)
    path = kept.folder / f"a{SUFFIX}"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert kept.load("a") is None


def test_what_a_killed_process_has_begun_is_removed(kept: CompiledNetworks) -> None:
    """Under the key of another version, which nobody writes again."""
    kept.keep("a", b"network")
    (kept.folder / f"b{SUFFIX}.new").write_bytes(b"half of a net")
    kept.keep("c", b"network")
    assert {path.name for path in kept.folder.iterdir()} == {
        f"a{SUFFIX}", f"c{SUFFIX}", "lock",
    }  # fmt: skip


def test_the_least_recently_used_are_removed(tmp_path: Path) -> None:
    kept = CompiledNetworks(tmp_path, most_files=2)
    for age, name in enumerate("abc"):
        kept.keep(name, name.encode())
        os.utime(tmp_path / f"{name}{SUFFIX}", (age, age))
        if name == "b":
            kept.load("a")  # used again, so later than b
    assert names(kept) == {"a", "c"}


def test_their_bytes_are_bounded(tmp_path: Path) -> None:
    kept = CompiledNetworks(tmp_path, most_bytes=300)
    for age, name in enumerate("abc"):
        kept.keep(name, b"x" * 100)
        os.utime(tmp_path / f"{name}{SUFFIX}", (age, age))
    assert names(kept) == {"b", "c"}


def test_nothing_is_written_beside_another_process(kept: CompiledNetworks) -> None:
    kept.keep("a", b"network")
    lock = own(kept.folder / "lock")
    assert lock is not None
    kept.keep("a", b"another")
    os.close(lock)
    assert kept.load("a") == b"network"


def test_many_at_a_time_leave_a_whole_file(kept: CompiledNetworks) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: kept.keep("a", bytes([n]) * 50_000), range(32)))
    found = kept.load("a")
    assert found is not None
    assert (len(found), len(set(found))) == (50_000, 1)


def test_a_folder_that_cannot_be_used_costs_the_compilation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    kept = CompiledNetworks(tmp_path / "file" / "openvino")
    kept.keep("a", b"network")
    assert kept.load("a") is None
    assert "each start compiles them again" in caplog.text


def test_a_file_under_the_name_of_another_network(tmp_path: Path) -> None:
    kept = CompiledNetworks(tmp_path)
    kept.keep("detector", b"a detector")
    (tmp_path / "detector.compiled").rename(tmp_path / "recogniser.compiled")
    assert kept.load("recogniser") is None


def test_what_would_wait_or_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    """Each of these has the right content behind it."""
    kept = CompiledNetworks(tmp_path)
    for key in ("pipe", "large"):
        kept.keep(key, b"network")
    content = (tmp_path / "pipe.compiled").read_bytes()
    assert CompiledNetworks(tmp_path, most_bytes=len(content) - 1).load("large") is None
    pipe = tmp_path / "pipe.compiled"
    pipe.unlink()
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(pipe.write_bytes, content)  # waits until the pipe is opened
        try:
            assert kept.load("pipe") is None
            assert not written.done()
        finally:
            reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            wait([written], timeout=20)
            os.close(reader)
