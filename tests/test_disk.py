"""Files and folders that are their owner's alone, whatever the umask; and locks that keep other
processes out."""

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PosixPath

import numpy as np
import pytest

from app.disk import FairLock, OneProcessLock, files_in, private_file, private_folder, write_whole
from app.index.certified.rows import IndexShape
from app.index.certified.snapshots.folder import has_rows
from app.locks import new_lock
from app.recognition.enroll import template_from_embedding
from app.services import build_services
from app.settings import Settings
from app.store.backends import create_engine
from app.store.schema import migrate
from tests.writing import enroll_person


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_folders_that_are_made_are_their_owners(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o755)
    private_folder(there / "data" / "index" / "7")
    made = (there / "data", there / "data" / "index", there / "data" / "index" / "7")
    assert [mode(path) for path in made] == [0o700] * 3
    private_folder(there)
    assert mode(there) == 0o755, "what the operator made stays as it is"


@pytest.mark.usefixtures("umask")
def test_files_that_are_made_are_their_owners(tmp_path: Path) -> None:
    private_file(tmp_path / "one")
    private_file(tmp_path / "one")
    assert mode(tmp_path / "one") == 0o600


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(FileExistsError):
        private_folder(tmp_path / "data")


class Vanishing(PosixPath):
    """A folder that another thread removes just after somebody has seen that it is there."""

    def is_dir(self) -> bool:
        there = super().is_dir()
        if there:
            self.rmdir()
        return there

    exists = is_dir  # type: ignore[assignment,unused-ignore]


def test_a_folder_that_vanishes_while_it_is_read(tmp_path: Path) -> None:
    """A collection's snapshot is removed while another thread looks whether rows are left."""
    for look in (files_in, has_rows):
        (tmp_path / "7").mkdir(exist_ok=True)
        assert not look(Vanishing(tmp_path / "7"))
    (tmp_path / "7" / "rows-1").touch()
    assert files_in(tmp_path / "7") == [tmp_path / "7" / "rows-1"]
    assert has_rows(tmp_path / "7")
    assert files_in(tmp_path / "7" / "rows-1") == []


@pytest.mark.usefixtures("umask")
def test_the_database_and_its_log(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT * FROM collections")
        modes = {path.name: mode(path) for path in folder.iterdir()}
    engine.dispose()
    assert mode(folder) == 0o700
    assert modes == dict.fromkeys(("likeness.db", "likeness.db-wal", "likeness.db-shm"), 0o600)


def test_everything_below_the_data_folder(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        services = build_services(Settings(data_dir=tmp_path / "data"))
        size = services.pack.recogniser.dimension
        vectors = np.random.default_rng(1).standard_normal((IndexShape().least_kept, size))
        new = [template_from_embedding(services, vector) for vector in vectors]
        enroll_person(services.gallery, "default", "ada", None, new)
        services.gallery.run_maintenance()
        services.close()
    finally:
        os.umask(before)
    found = list((tmp_path / "data").rglob("*"))
    assert any(path.name == "manifest.json" for path in found)
    for path in [tmp_path / "data", *found]:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("name", ["x" * 251, "x" * 255, "ü" * 127])
def test_a_file_may_have_the_longest_name_that_there_is(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, [b"content"])
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [(name, b"content")]


def test_a_secret_is_not_written_where_others_prepared_a_file(tmp_path: Path) -> None:
    """As in a folder that everybody may write to, such as /tmp."""
    secret, prepared = tmp_path / "secret", tmp_path / "secret.new"
    prepared.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        write_whole(secret, [b"token"])
    assert not (tmp_path / "elsewhere").exists()
    prepared.unlink(missing_ok=True)
    prepared.touch(0o666)
    prepared.chmod(0o666)
    write_whole(secret, [b"token"])
    assert secret.stat().st_mode & 0o777 == 0o600


class TestFairLock:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        one, other = FairLock(tmp_path / "db"), FairLock(tmp_path / "db")
        assert one.acquire(0)
        assert not other.acquire(0.01)
        one.release()
        assert other.acquire(0)
        other.release()

    def test_who_waits_is_before_who_released(self, tmp_path: Path) -> None:
        one, other = FairLock(tmp_path / "db"), FairLock(tmp_path / "db")
        assert one.acquire(0)
        order: list[str] = []

        def wait() -> None:
            assert other.acquire(60)
            order.append("other")
            other.release()

        waiting = threading.Thread(target=wait)
        waiting.start()
        place = os.open(tmp_path / "db-next", os.O_RDWR)
        while not is_locked(place):  # until it has the place next to the lock
            time.sleep(0.001)
        one.release()
        assert one.acquire(60)
        order.append("one")
        waiting.join()
        os.close(place)
        assert order == ["other", "one"]

    def test_a_folder_that_cannot_have_it(self, tmp_path: Path) -> None:
        assert not FairLock(tmp_path / "absent" / "db").acquire(60)

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "db-writer").symlink_to(tmp_path / "elsewhere")
        assert not FairLock(tmp_path / "db").acquire(60)
        assert not (tmp_path / "elsewhere").exists()


def is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def lock(path: Path) -> OneProcessLock:
    return OneProcessLock(new_lock("services.examination"), path)


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


def test_a_file_system_that_cannot_sync_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as some on a network: the file is written all the same, and a file's error counts."""
    fsync = os.fsync

    def only_files(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(file)

    monkeypatch.setattr(os, "fsync", only_files)
    write_whole(tmp_path / "file", [b"content"])
    assert (tmp_path / "file").read_bytes() == b"content"

    def nothing(_file: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", nothing)
    with pytest.raises(OSError, match="Invalid argument"):
        write_whole(tmp_path / "other", [b"content"])
    assert not (tmp_path / "other").exists()


def test_a_folder_that_may_be_written_but_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written must not be reported as failed."""
    opens = os.open

    def refusing(path: Path | str, flags: int, *more: int) -> int:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opens(path, flags, *more)

    monkeypatch.setattr(os, "open", refusing)
    write_whole(tmp_path / "file", [b"content"])
    assert (tmp_path / "file").read_bytes() == b"content"
