"""`likeness serve` as a process of its own."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from app.cli.serve import AddressError, bound
from tests.cli.conftest import Run
from tests.ports import free_port
from tests.waiting import PATIENCE_S, until

LIKENESS = Path(sys.executable).parent / "likeness"


class Service:
    """`likeness serve` as a process of its own."""

    def __init__(self, environment: dict[str, str], drain: str = "1") -> None:
        self.port = free_port()
        self._environment = {
            **environment,
            "LIKENESS_PORT": str(self.port),
            "LIKENESS_DRAIN_SECONDS": drain,
        }
        self.process: subprocess.Popen[str] | None = None
        self._clients: list[httpx.Client] = []

    def start(self) -> httpx.Client:
        self.process = subprocess.Popen(
            [LIKENESS, "serve"],
            env={**self._environment, "LIKENESS_LOG_FORMAT": "json", "LIKENESS_ACCESS_LOG": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self._clients.append(client)
        until(lambda: self._is_ready(client))
        return client

    @staticmethod
    def _is_ready(client: httpx.Client) -> bool:
        try:
            return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def end(self, how: signal.Signals) -> tuple[str, str]:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.communicate(timeout=PATIENCE_S)

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


@pytest.mark.chaos
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
    assert service.process.returncode == 0
    assert f"http://localhost:{service.port}/docs" in out
    assert f"http://localhost:{service.port}/v1" in out
    events = [json.loads(line) for line in err.splitlines()]
    assert any(e["event"] == "request" and e["route"] == "/v1/identify" for e in events)
    assert "obama" not in err


@pytest.mark.slow
def test_it_drains_before_it_ends(environment: dict[str, str], photos: Path) -> None:
    """For LIKENESS_DRAIN_SECONDS, or until a second signal."""
    service = Service(environment, drain="600")
    with closing(service):
        drain(service, (photos / "obama.jpg").read_bytes())


def drain(service: Service, photo: bytes) -> None:
    client = service.start()
    assert service.process is not None
    with ThreadPoolExecutor() as pool, httpx.Client(base_url=client.base_url) as other:
        under_way = pool.submit(client.post, "/v1/detect", files=[("image", photo)] * 8)
        at_work = "likeness_pending_requests 1.0"
        until(lambda: at_work in other.get("/metrics").text or under_way.done())
        service.process.send_signal(signal.SIGTERM)
        until(lambda: other.get("/readyz").status_code == 503)
        answer = other.get("/readyz")  # on a connection of its own: the listener is open
        assert (answer.json()["code"], "stopping" in answer.json()["detail"]) == ("not_ready", True)
        assert answer.headers["connection"] == "close"
        assert under_way.result().status_code == 200
    _, err = service.end(signal.SIGTERM)
    assert service.process.returncode == 0
    events = [json.loads(line)["event"] for line in err.splitlines()]  # and no traceback
    assert (events.count("stopping"), events.count("stopped")) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_by_itself_when_it_has_drained(service: Service, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under `nohup` SIGHUP is ignored, and stays so
    try:
        service.start()
    finally:
        signal.signal(number, before)
    assert service.process is not None
    _, err = service.end(number)
    assert service.process.returncode == 0
    assert '"stopped"' in err


def test_a_port_in_use_is_an_error(run: Run, environment: dict[str, str]) -> None:
    """In one sentence, before any network is loaded."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = run("serve", LIKENESS_PORT=str(port))
    assert answer.exit_code == 2
    assert f"Another process listens on port {port} of 127.0.0.1" in answer.stderr
    assert "network loaded" not in answer.stderr
    assert not (Path(environment["LIKENESS_DATA_DIR"]) / "likeness.db").exists()


@pytest.mark.parametrize(("host", "said"), [("192.0.2.1", "cannot listen"), ("no.such", "known")])
def test_an_address_of_another_machine(environment: dict[str, str], host: str, said: str) -> None:
    with pytest.raises(AddressError, match=said), bound(host, 0):
        pass


def test_every_address_of_a_name_is_bound() -> None:
    with bound("127.0.0.1", 0) as sockets:
        (one,) = sockets
        assert one.getsockname()[0] == "127.0.0.1"
    assert one.fileno() == -1
