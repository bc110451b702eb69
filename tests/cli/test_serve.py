"""`likeness serve` as a process of its own."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.ports import free_port

LIKENESS = Path(sys.executable).parent / "likeness"


class Service:
    """`likeness serve` as a process of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._environment = {**environment, "LIKENESS_PORT": str(self.port)}
        self.process: subprocess.Popen[str] | None = None
        self._clients: list[httpx.Client] = []

    def start(self) -> httpx.Client:
        self.process = subprocess.Popen(
            [LIKENESS, "serve"],
            env={**self._environment, "LIKENESS_LOG_FORMAT": "json"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self._clients.append(client)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if client.get("/readyz").status_code == 200:
                    return client
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the service did not become ready")

    def end(self, how: signal.Signals) -> tuple[str, str]:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.communicate(timeout=30)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.returncode is None:
            self.end(signal.SIGKILL)


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[Service]:
    service = Service(environment)
    yield service
    service.close()


def test_serve_survives_kill_9_with_all_it_acknowledged(service: Service, photos: Path) -> None:
    photo = {"image": (photos / "obama.jpg").read_bytes()}
    client = service.start()
    client.post("/v1/enroll", data={"person_id": "obama"}, files=photo).raise_for_status()
    service.end(signal.SIGKILL)
    client = service.start()
    probe = {"image": (photos / "obama2.jpg").read_bytes()}
    (face,) = client.post("/v1/identify", files=probe).json()["faces"]
    assert face["person_id"] == "obama"
    out, err = service.end(signal.SIGTERM)
    assert service.process is not None
    assert service.process.returncode in (0, -signal.SIGTERM)
    assert f"http://localhost:{service.port}/docs" in out
    assert f"http://localhost:{service.port}/v1" in out
    events = [json.loads(line) for line in err.splitlines()]
    assert any(e["event"] == "request" and e["route"] == "/v1/identify" for e in events)
    assert "obama" not in err


def test_a_port_that_is_taken_is_told(service: Service, environment: dict[str, str]) -> None:
    service.start()
    answer = subprocess.run(
        [LIKENESS, "serve"],
        env={**environment, "LIKENESS_PORT": str(service.port)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert answer.returncode != 0
    assert "address already in use" in answer.stderr
