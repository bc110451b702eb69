"""`likeness serve` with several processes: what one service promises holds for all of them."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from app.access.keys import KeyLimits, NewKey, Scope, read_pepper
from app.access.store import AccessKeyStore
from app.settings import Settings
from app.store.backends import create_engine
from app.store.database import Database
from app.store.schema import migrate
from tests.ports import free_port
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow
LIKENESS = Path(sys.executable).parent / "likeness"
DIMENSION = 192  # of the default pack
JSON = {"content-type": "application/json"}


class Service:
    """Two processes behind one port, and connections to it."""

    def __init__(self, environment: dict[str, str], token: str | None = None) -> None:
        self.port = free_port()
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._connections: list[http.client.HTTPConnection] = []
        self.process = subprocess.Popen(
            [LIKENESS, "serve"],
            env={
                **environment,
                "LIKENESS_PROCESSES": "2",
                "LIKENESS_PORT": str(self.port),
                "LIKENESS_DRAIN_SECONDS": "1",
                "LIKENESS_LOG_FORMAT": "json",
                "LIKENESS_ACCESS_LOG": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until_ready(self) -> "Service":
        until(self._is_ready, 4 * PATIENCE_S)
        return self

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        try:
            return self.call("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2 * PATIENCE_S)
        self._connections.append(connection)
        connection.connect()
        return connection

    def spread(self) -> list[http.client.HTTPConnection]:
        """As many connections to one process as to the other."""
        return [self.connect() for _ in range(4)]

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        over: http.client.HTTPConnection | None = None,
        token: str | None = None,
    ) -> tuple[int, Any]:
        """Status and answer; over a connection of its own if none is given."""
        connection = over or self.connect()
        headers = {**self._headers, **(JSON if body is not None else {})}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        text = response.read().decode()
        if over is None:
            connection.close()
        is_json = "json" in response.getheader("content-type", "")
        return response.status, json.loads(text) if is_json else text

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        """Exit status, log and output after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=2 * PATIENCE_S)
        return self.process.returncode, [json.loads(line) for line in err.splitlines()], out

    def close(self) -> None:
        for one in self._connections:
            one.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def children(service: Service) -> list[psutil.Process]:
    return psutil.Process(service.process.pid).children()


def embedding(number: int) -> list[float]:
    drawn = np.random.default_rng(number).standard_normal(DIMENSION)
    vector: list[float] = (drawn / np.linalg.norm(drawn)).tolist()
    return vector


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[Service]:
    with closing(Service(environment)) as started:
        yield started.until_ready()


def test_one_service(service: Service) -> None:
    """Writes are seen everywhere at once; numbers and readiness are those of all."""
    connections = service.spread()
    for number, over in enumerate(connections):
        body = {"person_id": f"p{number}", "embeddings": [embedding(number)]}
        assert service.call("POST", "/v1/enroll", body, over=over)[0] == 200
        for other in connections:
            path = f"/v1/collections/default/persons/p{number}"
            assert service.call("GET", path, over=other)[0] == 200
    assert service.call("DELETE", "/v1/collections/default/persons/p0")[0] == 200
    for over in connections:
        assert service.call("GET", "/v1/collections/default/persons/p0", over=over)[0] == 404
    time.sleep(0.3)  # answers for all are shared for that long
    _, text = service.call("GET", "/metrics")
    assert "likeness_processes 2.0" in text
    assert 'route="/v1/enroll",status="200"} 4.0' in text
    status, log, out = service.end()
    assert status == 0
    assert "2 processes" in out
    assert out.count("is ready") == 1
    requests = Counter(line["pid"] for line in log if line["event"] == "request")
    assert len(requests) == 2
    assert [line for line in log if line["level"] in ("error", "critical")] == []


def test_a_process_that_is_killed_or_asked_to_end(service: Service) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = {one.pid for one in children(service)}
        os.kill(min(before), number)
        until(lambda: min(before) not in {one.pid for one in children(service)})  # noqa: B023
        until(lambda: len(children(service)) == 2)
        until(service._is_ready)
    assert service.end()[0] == 0


def keys(environment: dict[str, str]) -> AccessKeyStore:
    settings = Settings(data_dir=Path(environment["LIKENESS_DATA_DIR"]))
    engine = create_engine(settings.resolved_database_url)
    migrate(engine)
    return AccessKeyStore(Database(engine), read_pepper(settings))


def test_access_keys_are_the_same_everywhere(environment: dict[str, str]) -> None:
    """Limits are those of the service, and a revocation is effective in every process."""
    store = keys(environment)
    _, admin = store.create(NewKey("admin", [*Scope]))
    _, slow = store.create(
        NewKey("slow", [Scope.MANAGE], limits=KeyLimits(requests_per_second=0.01))
    )
    _, guest = store.create(NewKey("guest", [Scope.MANAGE]))
    store._database.close()
    with closing(Service(environment, admin)) as service:
        service.until_ready()
        connections = service.spread()

        def statuses(token: str) -> list[int]:
            path = "/v1/collections"
            return [service.call("GET", path, over=one, token=token)[0] for one in connections]

        assert Counter(statuses(slow)) == {200: 1, 429: 3}  # one, whichever process it reaches
        assert Counter(statuses(guest)) == {200: 4}
        assert service.call("DELETE", "/v1/keys/guest")[0] == 200
        assert Counter(statuses(guest)) == {401: 4}
