"""The hidden folder in which a pack is made, beside those that are finished."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.disk import private_folder
from app.errors import PackError

PREFIX = ".unfinished-"
ATTEMPTS = 10


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, which is made if it is missing; gone after the `with`.

    A process that was killed leaves its folder behind: the next one removes it. Each holds a lock
    on its own, so that those of live processes stay. Raises PackError where `parent` cannot be
    written.
    """
    try:
        private_folder(parent)
        _remove_abandoned(parent)
        folder, lock = _made(parent)
    except OSError as error:
        raise PackError(
            f"{parent} cannot be written ({error.strerror}). Set LIKENESS_MODELS_DIR to a folder "
            "that can."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _made(parent: Path) -> tuple[Path, int]:
    for _ in range(ATTEMPTS):
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX))
        # Before it is locked, another process may take it for an abandoned one.
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)
    raise PackError(f"Other processes remove new folders in {parent}. Try again.")


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(FileNotFoundError, NotADirectoryError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            except BlockingIOError:  # its process lives
                pass
            finally:
                os.close(lock)
