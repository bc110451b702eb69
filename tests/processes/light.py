"""A service of several processes that has everything but recognition, and so starts at once.

    python -m tests.processes.light parent '{"count": 2, ...}'

The parent is the real one, and prints its port; the children have the real link. They answer every
request with their process id, `/sum` and `/ready` with what the parent makes of all answers, and
`/state` with whether a signal asked them to end, and whether the service stops.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from typing import Any

import uvloop

from app.processes.link import Link, end_with
from app.processes.messages import METRICS, NETWORKS, READY
from app.processes.parent import Parent
from app.processes.shared_records import SharedRecords
from app.processes.starting import Plan
from app.telemetry.metrics import BatchSizes

ASKED = {"/sum": METRICS, "/ready": READY}
HEAD = "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: {}\r\n\r\n"


@dataclass
class Server:
    """`app.processes.link.Served`."""

    link: Link
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    open: set["Exchange"] = field(default_factory=set)
    requests: int = 0
    draining: bool = False
    stopping: bool = False
    asked_to_end: bool = False

    def new_protocol(self) -> asyncio.Protocol:
        return Exchange(self)

    def drain(self, *, stopping: bool) -> None:
        self.draining = True
        self.stopping |= stopping

    def ask_to_end(self) -> None:
        self.link.leave()
        self.asked_to_end = True

    def end(self) -> None:
        asyncio.get_running_loop().call_later(0.2, self.ended.set)

    def end_at_once(self) -> None:
        self.ended.set()

    async def metrics(self) -> str:
        return (
            "# HELP requests_total Answered.\n# TYPE requests_total counter\n"
            f"requests_total {self.requests}\n"
        )

    async def ready(self) -> dict[str, Any]:
        return {"pid": os.getpid()}


class Exchange(asyncio.Protocol):
    """Answers one request after another; none has a body."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._received = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._server.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"\r\n\r\n"):
            path = self._received.split()[1].decode()
            self._received = b""
            self._task = asyncio.create_task(self._answer(path))

    async def _answer(self, path: str) -> None:
        if path in ASKED:
            body = json.dumps(await self._server.link.ask(ASKED[path]))
        elif path == "/state":
            body = json.dumps([self._server.asked_to_end, self._server.stopping])
        else:
            body = str(os.getpid())
        self._server.requests += 1
        closes = "close" if self._server.draining else "keep-alive"
        self.transport.write((HEAD.format(len(body), closes) + body).encode())
        if self._server.draining:
            self.transport.close()


async def serve(link: Link) -> None:
    server = Server(link)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.ask_to_end)
    link.open(server, {METRICS: server.metrics, READY: server.ready}, "up")
    await server.ended.wait()
    last = await server.metrics()
    for one in list(server.open):
        one.transport.close()
    await asyncio.sleep(0)
    link.close(last)


async def serve_nothing(link: Link) -> None:
    """As the process that runs the networks, without networks."""
    from app.cli.networks import NetworkProcess

    process = NetworkProcess(BatchSizes(dict))
    process.heed_signals(link)
    link.open(process, {METRICS: process.metrics}, "networks")
    await process.ended.wait()
    link.close(await process.metrics())


def child(arguments: str, channel: int, control: int, records: int, column: int, _: int) -> None:
    given = json.loads(arguments)
    failing = given.get("fails_with") and os.path.exists(given["fails_with"])  # noqa: PTH110
    if given.get("fails") or failing:
        sys.exit(given.get("fails") or 3)
    end_with(given["parent"])
    SharedRecords(records, column)
    link = Link(socket.socket(fileno=channel), socket.socket(fileno=control))
    run = asyncio.run if given["asyncio"] else uvloop.run
    run(serve_nothing(link) if given.get("role") == NETWORKS else serve(link))


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def parent(arguments: str) -> int:
    given = json.loads(arguments)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    say(listener.getsockname()[1])
    command = [sys.executable, "-m", "tests.processes.light", "child"]
    of_child: dict[str, Any] = {
        "fails": given.get("fails", 0),
        "asyncio": given.get("asyncio", False),
    }
    network = {"parent": os.getpid(), **of_child, "fails_with": given.get("networks_fail_with")}
    of_networks = [*command, json.dumps({**network, "role": NETWORKS})]
    of_child["fails_with"] = given.get("fails_with")
    command.append(json.dumps({"parent": os.getpid(), **of_child}))
    plan = Plan(
        command,
        given["count"],
        given.get("drain_s", 0.3),
        given.get("finish_s", 10.0),
        given.get("silent_s", 30.0),
        given.get("networks_command", of_networks if given.get("networks") else None),
    )
    return Parent(plan, [listener], say).run()


if __name__ == "__main__":
    if sys.argv[1] == "parent":
        sys.exit(parent(sys.argv[2]))
    child(sys.argv[2], *map(int, sys.argv[3:]))
