"""One of several processes of `likeness serve`, started by their parent (`app/processes/`)."""

import json
import os
import socket
import sys

from app.cli import garbage
from app.processes.link import Link, end_with
from app.processes.messages import NETWORKS
from app.processes.shared_records import SharedRecords


def main(
    arguments: str, channel: int, control: int, records: int, column: int, *, openings: int
) -> None:
    """Serve the connections that the parent hands over, or run the networks for those that do. The
    arguments are a JSON object; the numbers are those that `app.processes.children.Child` gives."""
    garbage.pause_until_served()
    given = json.loads(arguments)
    end_with(given["parent"])
    # As `app.cli.main` does, before anything imports NumPy.
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")
    link = Link(socket.socket(fileno=channel), socket.socket(fileno=control))
    if given.get("role") == NETWORKS:
        from app.cli.networks import serve_networks  # noqa: PLC0415 (ONNX Runtime)

        files = socket.socket(fileno=openings)
        serve_networks(link, given["settings"], given["count"], files)
        return
    from app.cli.serving import serve_for_parent  # noqa: PLC0415 (NumPy, FAISS, ONNX Runtime)
    from app.inference.remote.client import NetworkClient  # noqa: PLC0415

    serve_for_parent(
        link,
        SharedRecords(records, column),
        given["settings"],
        given["count"],
        given["port"],
        remote=NetworkClient(socket.socket(fileno=openings)) if openings >= 0 else None,
    )


if __name__ == "__main__":
    *files, last = map(int, sys.argv[2:])
    main(sys.argv[1], *files, openings=last)
