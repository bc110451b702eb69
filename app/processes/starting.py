"""How one service becomes several processes: what its parent does, and what each child may use."""

import json
import logging
import math
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from app.errors import LikenessError
from app.inference.machine import usable_cores, usable_memory
from app.processes.messages import NETWORKS
from app.settings import MIB, Device, Settings
from app.telemetry.logs import log

# A child answers from its event loop. One that does not for so long hangs, or is suspended.
SILENT_S = 30.0
# Before this a start is not given up: a migration or a database server may need minutes.
START_S = 900.0
CORES_EACH = 4
# Fewer than these are not divided further.
LEAST_WORKERS = LEAST_PENDING = 2
LEAST_CONNECTIONS = 32
# For one large photo at least.
LEAST_DECODE_BYTES = 512 * MIB


@dataclass(frozen=True, slots=True)
class Plan:
    """`command` starts a child, `count` of them serve. They have `drain_s` seconds from a stop
    until no connection is accepted any more, and then `finish_s` for what is under way. A child
    that does not answer for `silent_s` seconds is killed. `networks` starts one child more, which
    runs the networks for the others."""

    command: Sequence[str]
    count: int
    drain_s: float
    finish_s: float
    silent_s: float = SILENT_S
    networks: Sequence[str] | None = None


def process_count(settings: Settings) -> int:
    """How many processes serve; `auto`: one for each four cores that may be used."""
    if settings.processes == "auto":
        return max(1, usable_cores() // CORES_EACH)
    return settings.processes


def divided(settings: Settings, count: int) -> dict[str, Any]:
    """What differs in the settings of each of `count` processes."""
    workers = settings.workers or usable_cores()
    memory = settings.max_index_bytes or usable_memory() // 2
    decode = settings.max_decode_bytes
    return {
        "workers": max(LEAST_WORKERS, math.ceil(workers / count)),
        # One process at a time imports, with its part of the whole.
        "import_workers": settings.import_workers or max(1, workers // 2),
        "max_pending": max(LEAST_PENDING, settings.max_pending // count),
        "max_pending_bytes": max(1, settings.max_pending_bytes // count),
        "max_decode_bytes": max(min(decode, LEAST_DECODE_BYTES), decode // count),
        "max_connections": max(LEAST_CONNECTIONS, settings.max_connections // count),
        "max_index_bytes": max(1, memory // count),
    }


def announce(text: str) -> None:
    """Print, at once, where the service is. A service that serves does not end because nobody can
    read that."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except (OSError, LikenessError) as error:
        log(logging.WARNING, "the service is ready, which cannot be printed", reason=str(error))
        # Otherwise the exit would try to write it again.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


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
