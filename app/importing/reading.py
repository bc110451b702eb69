"""An uploaded archive as rows: read by a process of its own (`app.importing.reader`)."""

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
from app.importing.rows import ImportSourceError, Row
from app.importing.source_options import SourceOptions
from app.telemetry.logs import log

LOOK_EVERY_MS = 200
READ_AT_ONCE = 1 << 20
ENDS_WITHIN_S = 10.0
# All that it learns of the service's environment: no key is among these.
INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "TMPDIR", "SYSTEMROOT")


class ReaderDied(LikenessError):
    """The process that reads an archive ended before the archive did."""

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
        """How many rows there will be, where that is known before; to be asked first."""
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
                raise ReaderDied("The process that reads the archive gave no rows.") from error
            yield row

    def _next(self) -> tuple[str, Any]:
        frame = next(self._frames, None)
        if not isinstance(frame, list) or len(frame) != 2:
            raise self._death()
        kind, members = frame
        if kind == FAILED:
            raise _failure(members)
        if kind not in (TOTAL, ROW, END):
            raise ReaderDied("The process that reads the archive gave no rows.")
        return kind, members

    def _arriving(self, taken: Any) -> Iterator[Any]:
        """Frames, while `check` raises nothing."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while True:
            try:
                for frame in taken:
                    self._check()
                    yield frame
            except (ValueError, msgpack.UnpackException) as error:
                raise ReaderDied("The process that reads the archive gave no rows.") from error
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
            f"The process that reads the archive ended {how} before the archive did: the machine "
            "has too little memory, or the archive is damaged in a way that its reader does not "
            "survive. What was enrolled before stays."
        )


def _failure(members: Any) -> LikenessError:
    if "detail" in members:
        return ImportSourceError(str(members["detail"]))
    log(logging.ERROR, "an archive could not be read", where=str(members.get("where"))[:4_000])
    return ReaderDied(
        f"Reading the archive failed in a way that was not foreseen ({members['unforeseen']})."
    )


@contextmanager
def reading(
    archive: Path, options: SourceOptions, memory: int, check: Callable[[], None]
) -> Iterator[ArchiveReader]:
    """Read an archive while the context lasts. `check` is called several times a second, and for
    each row; what it raises ends the reading. Raises ImportSourceError."""
    asked = {
        "source": str(archive),
        "options": asdict(options),
        "memory": memory,
        "parent": os.getpid(),
    }
    command = [sys.executable, "-m", "app.importing.reader", json.dumps(asked)]
    try:
        # A new program: a fork of this one would share its locks.
        process = subprocess.Popen(  # noqa: S603 (this interpreter, and names of our own)
            command,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise ImportSourceError(
            f"The process that reads archives cannot be started: {error.strerror}."
        ) from error
    with process:
        try:
            yield ArchiveReader(process, options.max_bytes, check)
        finally:
            process.kill()


def _environment() -> dict[str, str]:
    root = str(Path(app.__file__).parent.parent)
    # Numbers are only copied there: threads for them would take memory and give nothing.
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
