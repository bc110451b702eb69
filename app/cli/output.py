"""The files that an operator tells a command to write."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
    """Raise OutputError for a file that `write_file` could not replace, before minutes are
    spent."""
    reason = None
    try:
        if output.exists() and not output.is_file():
            reason = "it is not a regular file"
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise OutputError(f"{output} cannot be written: {reason}. Name another file.")
    _require_none_unfinished(output)


def require_not_read(output: Path, read: Iterable[Path | None]) -> None:
    """Raise OutputError for a file that the command reads, or that lies in a folder that it reads,
    and which it would replace."""
    for path in read:
        if path is not None and _is_part_of(output, path):
            raise OutputError(
                f"{output} is a file that this command reads, and would be replaced. Name another "
                "file."
            )


def _is_part_of(output: Path, read: Path) -> bool:
    try:
        if read.is_dir():
            return output.exists() and output.resolve().is_relative_to(read.resolve())
        return output.samefile(read)
    except (OSError, ValueError):  # one of them is no file
        return False


def write_file(
    path: Path,
    pieces: Iterable[bytes],
    *,
    replace: bool,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a file that its owner alone can read. It is complete and on disk when this returns; if
    it fails, there is none, or the old one. `check` reads what was written before it has its name.
    Raises OutputError, also for a file that exists, unless it is to be replaced, StoreFull, and
    what `check` raises."""
    if os.path.lexists(path) and not replace:
        raise OutputError(f"{path} exists. Name another file, or replace it with --force.")
    _require_none_unfinished(path)
    with writing(path):
        write_whole(path, pieces, check)


def _require_none_unfinished(path: Path) -> None:
    if os.path.lexists(unfinished(path)):
        raise OutputError(
            f"{unfinished(path)} exists, and {path} is written under that name first. Delete it if "
            "an earlier command left it; otherwise name another file."
        )


def write_public_file(path: Path, content: bytes) -> None:
    """Write or replace a file without personal data that others may read. Raises as `write_file`
    does."""
    write_file(path, [content], replace=True)
    path.chmod(0o644)
