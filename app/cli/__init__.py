"""The installed command `likeness`."""

import os
import signal
import sys

from app.cli import garbage, streams


def main() -> None:
    """Run the command that the arguments name; ends the process."""
    # For how long (2 to that power, in cycles) NumPy's BLAS keeps its threads spinning after a
    # product: by default a tenth of a second, on cores that photos wait for.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    streams.prepare()
    if os.getpid() == 1:
        # The first process of a container: there Linux ignores signals that have no handler, and
        # `docker stop` would wait for its deadline. `serve` later sets a handler of its own.
        signal.signal(signal.SIGTERM, _terminate)
    if sys.argv[1:2] == ["serve"]:
        garbage.pause_until_served()
    from app.cli.commands import app  # noqa: PLC0415 (Typer, Rich)

    app()


def _terminate(number: int, frame: object) -> None:  # noqa: ARG001
    """End with the status that shells give a process which the signal ended."""
    sys.exit(128 + number)
