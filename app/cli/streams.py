"""Standard input, output and error of a command."""

import io
import os
import sys
from typing import Any

from app.cli.output import writing
from app.errors import LikenessError


class _Output(io.FileIO):
    """Standard output. A write that fails raises OutputError or StoreFull, once: what is written
    after it is discarded, so that one error is reported and nothing fails again at the exit."""

    failed = False

    def write(self, data: Any, /) -> int:
        """The number of bytes written."""
        size = memoryview(data).nbytes
        if self.failed or not size:  # Typer writes nothing to find out what kind of file it is
            return size
        try:
            with writing("Standard output"):
                return super().write(data)
        except LikenessError:
            self.failed = True
            raise


def prepare() -> None:
    """Make every failure of standard output an error of the service, and replace streams that the
    process was started without: the next file that is opened, such as the database, would become
    one of them."""
    # Input is empty then, a write of output fails, and messages go nowhere.
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 (it ends with the process)
    given = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(given, io.TextIOWrapper):
        raw = _Output(1, "w", closefd=False)
        sys.stdout = io.TextIOWrapper(
            raw if given.write_through else io.BufferedWriter(raw),
            encoding=given.encoding,
            errors=given.errors,
            line_buffering=given.line_buffering,
            write_through=given.write_through,
        )
