"""How the command `serve` becomes the parent of several processes."""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from app.processes.division import divided
from app.processes.messages import NETWORKS
from app.settings import Device, Settings


def become_parent(
    settings: Settings, count: int, given: Mapping[str, Any], listeners: Sequence[socket.socket]
) -> NoReturn:
    """Replace this process, under the same process id. `given` are settings that came from the
    command line; the listeners are bound."""
    for one in listeners:
        one.set_inheritable(True)
    arguments: dict[str, Any] = {
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
    if settings.device is Device.CUDA:
        # One process has the networks on the GPU; each with its own would take the memory and the
        # start of all.
        arguments["networks"] = {
            "parent": os.getpid(),
            "count": count,
            "settings": dict(given),
            "role": NETWORKS,
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
