"""How the command `serve` becomes the parent of several processes."""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from app.processes.division import divided
from app.settings import Settings


def become_parent(
    settings: Settings, count: int, given: Mapping[str, Any], listeners: Sequence[socket.socket]
) -> NoReturn:
    """Replace this process, under the same process id. `given` are settings that came from the
    command line; the listeners are bound."""
    for one in listeners:
        one.set_inheritable(True)
    arguments = {
        "count": count,
        "drain_seconds": settings.drain_seconds,
        "request_timeout": settings.request_timeout,
        "log_format": settings.log_format,
        "log_level": settings.log_level,
        "listeners": [one.fileno() for one in listeners],
        "child": {
            "parent": os.getpid(),
            "count": count,
            "settings": {**given, **divided(settings, count)},
            "port": listeners[0].getsockname()[1],
        },
    }
    sys.stdout.flush()
    command = [sys.executable, "-P", "-m", "app.processes", json.dumps(arguments)]
    os.execv(sys.executable, command)  # noqa: S606 (this interpreter)


def listeners_of(files: Sequence[int]) -> list[socket.socket]:
    """The sockets that were handed through."""
    found = [socket.socket(fileno=one) for one in files]
    for one in found:
        one.set_inheritable(False)
    return found
