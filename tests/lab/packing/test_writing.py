"""Folders in which packs are made."""

import errno
import fcntl
import os
import zipfile
from pathlib import Path

import pytest

from app.errors import PackError
from app.lab.packing.writing import PREFIX, workspace, write_zip


def test_it_is_gone_afterwards(tmp_path: Path) -> None:
    with workspace(tmp_path / "installed") as folder:
        (folder / "network.onnx").write_bytes(b"half")
    assert list((tmp_path / "installed").iterdir()) == []


def test_it_is_gone_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), workspace(tmp_path):
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (left := tmp_path / f"{PREFIX}left").mkdir()
    (left / "pack.toml").write_text("half")
    (tmp_path / "mine").mkdir()
    with workspace(tmp_path) as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, tmp_path / "mine"])


def test_what_another_process_works_in_stays(tmp_path: Path) -> None:
    (used := tmp_path / f"{PREFIX}used").mkdir()
    lock = os.open(used, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with workspace(tmp_path), workspace(tmp_path):
        assert used.is_dir()
        assert len(list(tmp_path.iterdir())) == 3
    os.close(lock)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (target := tmp_path / "target").mkdir()
    (target / "kept").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(target)
    with workspace(tmp_path):
        pass
    assert (target / "kept").exists()


def test_a_zip_appears_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "mine").mkdir()
    (folder / "pack.toml").write_text("name")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(PackError, match=r"mine\.zip cannot be written"):
            write_zip(folder, tmp_path / "mine.zip")
    assert list(tmp_path.iterdir()) == [folder]
    write_zip(folder, tmp_path / "mine.zip")
    assert zipfile.ZipFile(tmp_path / "mine.zip").namelist() == ["pack.toml"]
