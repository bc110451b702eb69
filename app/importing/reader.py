"""The process that reads an archive for a running service: `python -m app.importing.reader JSON`.

It gives the archive's rows on standard output and does nothing else: it has a limit of memory, may
write no file, knows no key, and ends with the service that started it. So nothing that an archive
holds can hurt the service.
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

# Rows are given in pieces of that many bytes, or after that time.
PIECE, GIVE_EVERY_S = 1 << 18, 0.2
PR_SET_PDEATHSIG = 1
FREE_FOR_THE_SENTENCE = 1 << 20


def main() -> None:
    """Read what the argument names."""
    asked = json.loads(sys.argv[1])
    end_with_parent(asked["parent"])
    limit(asked["memory"])
    options = asked["options"]
    if options["person_from"] is not None:
        options["person_from"] = PersonFrom(options["person_from"])
    with os.fdopen(sys.stdout.fileno(), "wb", PIECE, closefd=False) as out:
        give(asked["source"], SourceOptions(**options), asked["memory"], out)


def end_with_parent(parent: int) -> None:
    """Where Linux can, be killed when the service ends; elsewhere the next write fails."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def limit(memory: int) -> None:
    """Bound what an archive can make this process take."""
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
    """The number of rows, the rows, and how it ended, as frames."""
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
                "(LIKENESS_IMPORT_READER_BYTES): it is damaged or hostile, or has to be split."
            },
        )
    except BrokenPipeError:  # the service has ended
        os._exit(1)
    except Exception as error:  # noqa: BLE001 (the service says so, and logs where it was)
        where = "".join(traceback.format_tb(error.__traceback__))
        last = FAILED, {"unforeseen": type(error).__name__, "where": where}
    del kept
    out.write(pack(*last))
    out.flush()


if __name__ == "__main__":
    main()
