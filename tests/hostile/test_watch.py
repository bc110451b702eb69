"""What the watcher counts as a failure of the service."""

import http.client
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.certificates import make_pair
from tests.hostile.target import Target
from tests.hostile.watch import SENT_LATE_S, Watcher


@pytest.fixture(params=["http", "https"])
def cutting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watcher]:
    """A watcher of a server that closes one connection after the client's first message."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def cut() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1_000)

        thread = threading.Thread(target=cut)
        thread.start()
        certificate = make_pair(tmp_path).certificate if request.param == "https" else None
        target = Target(server.getsockname()[1], tmp_path, certificate)
        yield Watcher(target, psutil.Process(os.getpid()))
        thread.join()


@pytest.mark.parametrize("late_s", [0.0, 2 * SENT_LATE_S])
def test_a_connection_without_an_answer_is_a_failure_if_the_request_was_sent_at_once(
    cutting: Watcher, monkeypatch: pytest.MonkeyPatch, late_s: float
) -> None:
    # The limit is high where nothing waits, so that a busy machine cannot change the result.
    monkeypatch.setattr("tests.hostile.watch.SENT_LATE_S", SENT_LATE_S if late_s else 60)
    connect = http.client.HTTPConnection.connect

    def late(connection: http.client.HTTPConnection) -> None:
        connect(connection)
        time.sleep(late_s)

    monkeypatch.setattr(http.client.HTTPConnection, "connect", late)
    cutting._livez()
    assert len(cutting.seen.livez) == 1
    assert len(cutting.seen.livez_failures) == (0 if late_s else 1)
