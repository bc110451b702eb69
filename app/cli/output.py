"""The files that an operator tells a command to write."""

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.disk import unfinished, write_whole
from app.errors import LikenessError, StoreFull

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class OutputError(LikenessError):
    """A file that an operator named cannot be written."""

    code, title = "output_error", "Writing failed"


@contextmanager
def writing(target: Path | str) -> Iterator[None]:
    """Report a failure to write as one about `target`: OutputError, or StoreFull on a full disk."""
    try:
        yield
    except OSError as error:
        kind = StoreFull if error.errno in FULL else OutputError
        raise kind(f"{target} cannot be written: {error.strerror}.") from error


def require_writable(output: Path) -> None:
    """Raise OutputError for a file that cannot be written, before minutes are spent."""
    reason = "it is a folder" if output.is_dir() else None
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise OutputError(f"{output} cannot be written: {reason}. Name another file.")


def require_not_read(output: Path, read: Iterable[Path | None]) -> None:
    """Raise OutputError for a file that the command reads, which it would replace."""
    for path in read:
        with suppress(OSError, ValueError):  # one of them is no file
            if path is not None and output.samefile(path):
                raise OutputError(
                    f"{output} is a file that this command reads, and would be replaced. "
                    "Name another file."
                )


def write_file(path: Path, pieces: Iterable[bytes], *, replace: bool) -> None:
    """Write a file that its owner alone can read. It is complete and on disk when this returns; if
    it fails, there is none, or the old one. Raises OutputError, also for a file that exists, unless
    it is to be replaced, and StoreFull."""
    if os.path.lexists(path) and not replace:
        raise OutputError(f"{path} exists. Name another file, or replace it with --force.")
    if os.path.lexists(unfinished(path)):
        raise OutputError(
            f"{unfinished(path)} exists, and {path} is written under that name first. Delete it if "
            "an earlier command left it; otherwise name another file."
        )
    with writing(path):
        write_whole(path, pieces)


def write_public_file(path: Path, content: bytes) -> None:
    """Write or replace a file without personal data that others may read. Raises as `write_file`
    does."""
    write_file(path, [content], replace=True)
    path.chmod(0o644)
