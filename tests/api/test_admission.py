"""Admission under load: refusals, deadlines, clients that leave, and a loop that stays free."""

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.main import create_app
from app.api.server import Server
from app.faces.pipeline import FacePipeline
from app.services import Services, build_services
from app.settings import Settings
from app.types import CooperativeTask
from tests.api.conftest import run_server, waits_for
from tests.api.test_decisions import code_of
from tests.remembered import RememberingSession
from tests.waiting import until

OpenService = Callable[..., Any]


@pytest.fixture
def may_go_on() -> threading.Event:
    """Set it, and the worker of a service that was opened with `held` takes photos."""
    return threading.Event()


@contextmanager
def serving(services: Services) -> Iterator[httpx.Client]:
    with run_server(services) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def open_service(tmp_path: Path, may_go_on: threading.Event) -> OpenService:
    """open_service(held=True, max_pending=1): a client of a service whose one worker, with `held`,
    takes no photo before `may_go_on` is set."""

    @contextmanager
    def open_one(*, held: bool = False, **settings: Any) -> Iterator[httpx.Client]:
        services = build_services(Settings(data_dir=tmp_path, workers=1, port=0, **settings))
        waiting = waits_for(may_go_on, services) if held else nullcontext()
        with serving(services) as client, waiting:
            yield client

    return open_one


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@contextmanager
def sent(client: httpx.Client, photos: list[bytes]) -> Iterator[socket.socket]:
    """A whole call that was sent and of whose answer nothing is read; it is left at the end."""
    request = client.build_request("POST", "/v1/detect", files=[("image", p) for p in photos])
    body = request.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((request.url.host, request.url.port)) as connection:
        connection.sendall(f"POST /v1/detect HTTP/1.1\r\n{head}\r\n".encode() + body)
        yield connection


def test_beyond_the_limit_requests_are_refused_and_health_is_not(
    open_service: OpenService, astronaut: bytes
) -> None:
    with open_service(held=True, max_pending=1) as client:
        with sent(client, [astronaut] * 4):
            assert until(lambda: metric(client, "likeness_waiting_photos") > 0)
            answer = client.post("/v1/detect", files={"image": b"never read"})
            assert (answer.status_code, code_of(answer)) == (503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-request-id"] == answer.json()["request_id"]
            assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        assert until(lambda: metric(client, "likeness_pending_requests") == 0)
        assert client.get("/v1/collections").status_code == 200
        assert metric(client, 'likeness_problems_total{code="overloaded"}') == 1


def test_bodies_count_before_they_are_read(open_service: OpenService, astronaut: bytes) -> None:
    service = open_service(held=True, max_pending_bytes=len(astronaut) * 9 // 2)
    with service as client, sent(client, [astronaut] * 4):
        assert until(lambda: metric(client, "likeness_waiting_photos") > 0)
        assert code_of(client.post("/v1/detect", files={"image": astronaut})) == "overloaded"


def test_a_body_that_is_always_too_long_is_not_asked_for_again(
    open_service: OpenService, astronaut: bytes
) -> None:
    service = open_service(held=True, max_pending_bytes=len(astronaut) * 9 // 2)
    with service as client, sent(client, [astronaut] * 4):
        assert until(lambda: metric(client, "likeness_waiting_photos") > 0)
        body, kind = bytes(2**21), {"content-type": "application/json"}
        answer = client.post("/v1/collections", content=body, headers=kind)
        assert (answer.status_code, code_of(answer)) == (413, "request_too_large")


def test_a_deadline(
    open_service: OpenService, may_go_on: threading.Event, astronaut: bytes
) -> None:
    with open_service(held=True, request_timeout=0.3) as client:
        answer = client.post("/v1/detect", files=[("image", astronaut)] * 6)
        assert (answer.status_code, code_of(answer)) == (503, "deadline_exceeded")
        assert "0.3 s" in answer.json()["detail"]
        assert int(answer.headers["retry-after"]) >= 1
        may_go_on.set()
        assert until(lambda: metric(client, "likeness_waiting_photos") == 0)
    with open_service(request_timeout=60) as client:
        assert client.post("/v1/detect", files={"image": astronaut}).status_code == 200


def test_a_timeout_of_a_disk_is_not_the_deadline(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch, astronaut: bytes
) -> None:
    def fails(*_: Any, **__: Any) -> CooperativeTask[None]:
        raise OSError(errno.ETIMEDOUT, "Connection timed out")
        yield

    monkeypatch.setattr(FacePipeline, "steps", fails)
    with open_service() as client:
        answer = client.post("/v1/detect", files={"image": astronaut})
    assert (answer.status_code, code_of(answer)) == (500, "internal_error")


def test_photos_whose_client_has_gone_are_dropped(
    open_service: OpenService, may_go_on: threading.Event, astronaut: bytes
) -> None:
    with open_service(held=True) as client:
        with sent(client, [astronaut] * 12):
            assert until(lambda: metric(client, "likeness_waiting_photos") > 6)
        assert until(lambda: metric(client, "likeness_pending_requests") == 0)
        may_go_on.set()
        assert client.post("/v1/detect", files={"image": astronaut}).status_code == 200
        analysed = metric(client, 'likeness_stage_seconds_count{stage="decode"}')
        assert analysed == 1  # the astronaut; of twelve photos none was finished
        assert metric(client, "likeness_waiting_photos") == 0
        gone = 'likeness_requests_total{method="POST",route="/v1/detect",status="499"}'
        assert metric(client, gone) == 1


def test_a_client_that_leaves_while_it_sends(open_service: OpenService) -> None:
    with open_service() as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(
                b"POST /v1/detect HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
                b"content-length: 1000\r\n\r\nabc"
            )
            assert until(lambda: metric(client, "likeness_pending_requests") == 1)
        assert until(lambda: metric(client, "likeness_pending_requests") == 0)
        assert metric(client, 'likeness_problems_total{code="internal_error"}') == 0


def test_a_hanging_worker_turns_readiness_off(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.inference.scheduler.STALLED_AFTER_S", 0.0)
    with open_service(held=True) as client:
        assert until(lambda: client.get("/readyz").status_code == 503)


@pytest.mark.slow
def test_the_loop_stays_free_under_load(
    tmp_path: Path, astronaut: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads decode and run networks. How late the loop wakes is measured on a quiet machine
    (python -m tests.hostile): here its own work counts, which other processes do not change."""
    monkeypatch.setattr(RememberingSession, "enabled", False)
    services = build_services(Settings(data_dir=tmp_path, port=0))
    server = Server(create_app(services), services.settings)

    async def load() -> float:
        serve = asyncio.create_task(server.serve())
        await asyncio.to_thread(until, lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            await _post(client, astronaut)
            before, all_before = time.thread_time(), time.process_time()
            answers = await asyncio.gather(*(_post(client, astronaut) for _ in range(40)))
            of_loop, of_all = time.thread_time() - before, time.process_time() - all_before
        assert {answer.status_code for answer in answers} == {200}
        server.should_exit = True
        await serve
        return of_loop / of_all

    # Of the processor's time it has a tenth, with that of the client that asks here.
    assert asyncio.run(load()) < 0.25


def _post(client: httpx.AsyncClient, photo: bytes) -> Awaitable[httpx.Response]:
    return client.post("/v1/embed", files={"image": photo})
