"""The process that reads an archive for a running service: `python -m app.importing.reader JSON`.

It writes the archive's rows to standard output and does nothing else: it has a limit of memory,
cannot write files, has no keys, and ends with the service that started it. So a hostile archive
cannot harm the service.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any, BinaryIO

from app.errors import LikenessError
from app.importing.frames import END, FAILED, TOTAL, pack, pack_row
from app.importing.source_options import PersonFrom, SourceOptions
from app.importing.sources import rows_of, total_of

# Rows are written in pieces of this many bytes, or after this time.
PIECE, GIVE_EVERY_S = 1 << 18, 0.2
PR_SET_PDEATHSIG = 1
# Reading ahead must not take the cores from the requests of the service.
MORE_NICE = 5
FREE_FOR_THE_SENTENCE = 1 << 20


def main() -> None:
    """Read what the argument names."""
    asked = json.loads(sys.argv[1])
    end_with_parent(asked["parent"])
    os.nice(MORE_NICE)
    limit(asked["memory"])
    options = asked["options"]
    if options["person_from"] is not None:
        options["person_from"] = PersonFrom(options["person_from"])
    with os.fdopen(sys.stdout.fileno(), "wb", PIECE, closefd=False) as out:
        give(asked["source"], SourceOptions(**options), asked["memory"], out)


def end_with_parent(parent: int) -> None:
    """On Linux, be killed when the service ends; elsewhere the next write fails then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def limit(memory: int) -> None:
    """Set the limits of this process: memory, and no writing of files."""
    wanted = {
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in wanted.items():
        _, hard = resource.getrlimit(kind)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def give(source: str, options: SourceOptions, memory: int, out: BinaryIO) -> None:
    """Write frames: the number of rows, the rows, and how the reading ended."""
    kept: bytearray | None = bytearray(FREE_FOR_THE_SENTENCE)
    last: tuple[str, Any]
    try:
        out.write(pack(TOTAL, total_of([source], options)))
        out.flush()
        given_at = time.monotonic()
        for row in rows_of([source], options):
            out.write(pack_row(row))
            if time.monotonic() - given_at > GIVE_EVERY_S:
                out.flush()
                given_at = time.monotonic()
        last = END, None
    except LikenessError as error:
        last = FAILED, {"detail": error.detail}
    except MemoryError:
        kept = None
        last = (
            FAILED,
            {
                "detail": f"Reading the archive takes more than {memory >> 20:,} MiB of memory "
                "(LIKENESS_IMPORT_READER_BYTES): split it, unless it is damaged or hostile."
            },
        )
    except BrokenPipeError:  # the service has ended
        os._exit(1)
    except Exception as error:  # noqa: BLE001 (the service reports it and logs where it was)
        where = "".join(traceback.format_tb(error.__traceback__))
        last = FAILED, {"unforeseen": type(error).__name__, "where": where}
    del kept
    out.write(pack(*last))
    out.flush()


if __name__ == "__main__":
    main()
