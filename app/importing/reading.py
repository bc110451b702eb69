"""Reads the rows of an uploaded archive in a separate process (`app.importing.reader`).

The service trusts nothing that it receives.
"""

import json
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack

import app
from app.errors import LikenessError
from app.importing.frames import END, FAILED, ROW, TOTAL, unpack_row, unpacker
from app.importing.source_options import SourceOptions
from app.importing.source_rows import ImportSourceError, Row
from app.telemetry.logs import log

LOOK_EVERY_MS = 200
READ_AT_ONCE = 1 << 20
ENDS_WITHIN_S = 10.0
# The only variables of the service's environment that it gets: no keys.
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "TMPDIR", "SYSTEMROOT")


INVALID_ROWS = (
    "The process that reads the archive sent invalid data; the archive may be hostile. The "
    "import has ended."
)


class ReaderDied(LikenessError):
    """The process that reads an archive ended before the end of the archive."""

    code, status, title = "import_reader_died", 422, "The archive could not be read"


class ArchiveReader:
    """The rows of one archive."""

    def __init__(self, process: "subprocess.Popen[bytes]", most: int, check: Callable[[], None]):
        assert process.stdout is not None, "it was asked for"
        self._process = process
        self._pipe = process.stdout.fileno()
        self._frames = self._arriving(unpacker(most))
        self._check = check

    def total(self) -> int | None:
        """The number of rows, if it is known in advance; call this first."""
        kind, members = self._next()
        return int(members) if kind == TOTAL and members is not None else None

    def rows(self) -> Iterator[Row]:
        """The rows. Raises ImportSourceError, ReaderDied, and what `check` raises."""
        while True:
            kind, members = self._next()
            if kind == END:
                return
            try:
                row = unpack_row(members)
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise ReaderDied(INVALID_ROWS) from error
            yield row

    def _next(self) -> tuple[str, Any]:
        frame = next(self._frames, None)
        if not isinstance(frame, list) or len(frame) != 2:
            raise self._death()
        kind, members = frame
        if kind == FAILED:
            raise _failure(members)
        if kind not in (TOTAL, ROW, END):
            raise ReaderDied(INVALID_ROWS)
        return kind, members

    def _arriving(self, taken: Any) -> Iterator[Any]:
        """Frames, until `check` raises."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while True:
            try:
                for frame in taken:
                    self._check()
                    yield frame
            except (ValueError, msgpack.UnpackException) as error:
                raise ReaderDied(INVALID_ROWS) from error
            while not poll.poll(LOOK_EVERY_MS):
                self._check()
            piece = os.read(self._pipe, READ_AT_ONCE)
            if not piece:
                return
            taken.feed(piece)

    def _death(self) -> ReaderDied:
        try:
            code = self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            code = 0
        how = f"with exit status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        return ReaderDied(
            f"The process that reads the archive ended {how} before the end of the archive: the "
            "machine has too little memory, or the archive is damaged. Check both, or send the "
            "archive in parts. Rows enrolled before are kept."
        )


def _failure(members: Any) -> LikenessError:
    if "detail" in members:
        return ImportSourceError(str(members["detail"]))
    log(logging.ERROR, "an archive could not be read", where=str(members.get("where"))[:4_000])
    return ReaderDied(
        f"Reading the archive failed with an unexpected error ({members['unforeseen']}); the "
        "service's log says where."
    )


@contextmanager
def reading(
    archive: Path, options: SourceOptions, memory: int, check: Callable[[], None]
) -> Iterator[ArchiveReader]:
    """Start a process that reads an archive; it ends with the context. `check` is called several
    times a second and for each row; if it raises, reading ends. Raises ImportSourceError."""
    asked = {
        "source": str(archive),
        "options": asdict(options),
        "memory": memory,
        "parent": os.getpid(),
    }
    command = [sys.executable, "-m", "app.importing.reader", json.dumps(asked)]
    try:
        # A new program, because a fork of this process would share its locks.
        process = subprocess.Popen(  # noqa: S603 (this interpreter, and names of our own)
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise ImportSourceError(
            f"The process that reads archives cannot be started: {error.strerror}. Send the "
            "archive again later."
        ) from error
    with process:
        try:
            yield ArchiveReader(process, options.max_bytes, check)
        finally:
            process.kill()


def _environment() -> dict[str, str]:
    root = str(Path(app.__file__).parent.parent)
    # Numeric threads would only take memory, because nothing is computed there.
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    memory = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {
        **kept,
        **threads,
        **memory,
        "PYTHONPATH": root,
        "PYTHONSAFEPATH": "1",
        "LC_ALL": "C.UTF-8",
    }
