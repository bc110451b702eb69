"""One of several processes of `likeness serve`, started by their parent (`app/processes/`)."""

import gc
import json
import os
import socket
import sys

from app.processes.link import Link, end_with
from app.processes.shared_records import SharedRecords


def main(arguments: str, channel: int, control: int, records: int, column: int) -> None:
    """Serve the connections that the parent hands over. The arguments are a JSON object; the
    numbers are those that `app.processes.child.Child` gives."""
    gc.disable()  # until the service listens: `serving.shorten_pauses`
    given = json.loads(arguments)
    end_with(given["parent"])
    # As `app.cli.main` does, before anything imports NumPy.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    link = Link(socket.socket(fileno=channel), socket.socket(fileno=control))
    from app.cli.serving import serve_for_parent  # noqa: PLC0415 (NumPy, FAISS, ONNX Runtime)

    serve_for_parent(
        link, SharedRecords(records, column), given["settings"], given["count"], given["port"]
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
