"""One of several serving processes; the test has its parent's ends of the sockets."""

import io
import json
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from app.api.main import create_app
from app.api.server import ChildServer, Server
from app.processes.link import Link
from app.processes.messages import AT_ONCE, CONNECTION, END, REPLACED, STOP, Lines
from app.services import Services, build_services
from app.settings import Settings
from app.telemetry.logs import LOGGER_NAME, JsonFormatter, request_id
from tests.api.conftest import waits_for
from tests.waiting import PATIENCE_S, until


@pytest.mark.parametrize("event", ["this process is to end", "stopping"])
def test_a_signal_is_no_part_of_the_request_that_it_interrupts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, event: str
) -> None:
    services = build_services(Settings(data_dir=tmp_path))
    child = Child(services)
    alone = Server(create_app(services), services.settings)
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger(LOGGER_NAME)
    logger.addHandler(handler)
    token = request_id.set("of another's request")
    try:
        with caplog.at_level(logging.INFO, LOGGER_NAME):
            (alone if event == "stopping" else child.server).handle_exit(signal.SIGTERM, None)
    finally:
        request_id.reset(token)
        logger.removeHandler(handler)
        child.close()
        services.close()
    line = json.loads(lines.getvalue().splitlines()[0])
    assert [line["event"], line["signal"]] == [event, "SIGTERM"]
    assert "request_id" not in line


class Child:
    """A server on a thread, and what its parent would do."""

    def __init__(self, services: Services) -> None:
        self.channel, theirs = socket.socketpair()
        control, their_control = socket.socketpair()
        self._lines = Lines(control)
        self._link_files = (theirs, their_control)
        self.server = ChildServer(
            create_app(services), services.settings, Link(theirs, their_control), "here"
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def value(self, name: str) -> Any:
        """What it says under that name."""

        def received() -> list[Any]:
            return [value[name] for value in self._lines.receive() if name in value]

        return until(received)[0]

    def connect(self) -> socket.socket:
        """A connection that was accepted for it."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname(), PATIENCE_S)
            accepted, _ = listener.accept()
        socket.send_fds(self.channel, [CONNECTION], [accepted.fileno()])
        accepted.close()
        return client

    def close(self) -> None:
        with suppress(OSError):  # it has ended
            self.channel.send(AT_ONCE)
        self.thread.join(PATIENCE_S)
        for one in (self.channel, self._lines.socket, *self._link_files):
            one.close()


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return build_services(Settings(data_dir=tmp_path, workers=1))


@contextmanager
def running(services: Services) -> Iterator[Child]:
    child = Child(services)
    try:
        assert child.value("up") == "here"
        yield child
    finally:
        child.close()


def detect(photo: bytes) -> bytes:
    head = (
        "POST /v1/detect HTTP/1.1\r\nhost: test\r\ncontent-type: image/jpeg\r\n"
        f"content-length: {len(photo)}\r\n\r\n"
    )
    return head.encode() + photo


COUNTED = 'likeness_requests_total{method="POST",route="/v1/detect",status="200"} 1.0'


def test_the_last_metrics_have_what_was_answered_while_the_process_ended(
    services: Services, blank_photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    may_go_on = threading.Event()
    with running(services) as child, caplog.at_level("INFO", "uvicorn.error"):
        with waits_for(may_go_on, services), child.connect() as client:
            client.sendall(detect(blank_photo))
            until(lambda: services.scheduler.waiting)
            child.channel.send(END)
            until(lambda: "Waiting for connections to close" in caplog.text)
            may_go_on.set()
            assert client.recv(1_000).startswith(b"HTTP/1.1 200")
        assert COUNTED in child.value("last")


def test_a_process_that_ends_at_once_leaves_its_metrics(
    services: Services, blank_photo: bytes
) -> None:
    with running(services) as child:
        with child.connect() as client:
            client.sendall(detect(blank_photo))
            assert client.recv(1_000).startswith(b"HTTP/1.1 200")
        child.channel.send(AT_ONCE)
        assert COUNTED in child.value("last")
    services.close()


@pytest.mark.parametrize(
    ("order", "reason"),
    [(REPLACED, "This process is being replaced"), (STOP, "The service is stopping")],
)
def test_an_upload_is_answered_with_the_reason_of_its_end(
    services: Services, order: bytes, reason: str
) -> None:
    head = (
        b"POST /v1/collections/default/imports HTTP/1.1\r\nhost: test\r\n"
        b"content-type: application/zip\r\ncontent-length: 1000\r\n\r\nPK"
    )
    with running(services) as child, child.connect() as client:
        client.sendall(head)
        until(lambda: len(child.server._app.state.transfers.uploads))
        child.channel.send(order + END)
        answer = HTTPResponse(client)
        answer.begin()
        problem = json.loads(answer.read())
    assert (answer.status, problem["code"]) == (503, "not_ready")
    assert problem["detail"].startswith(reason)
