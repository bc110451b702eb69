"""Health, metrics and request ids."""

import asyncio
import re
import threading
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import Response
from starlette.types import Receive, Scope, Send

from app.api.endpoints import system
from app.api.middleware import RequestContext
from app.errors import StoreFull
from app.services import Services
from tests.api.test_decisions import code_of
from tests.gallery.test_erasing import long_reader
from tests.waiting import PATIENCE_S, until


def test_liveness_and_readiness(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert (ready["status"], ready["provider"]) == ("ready", "CPUExecutionProvider")
    metrics = client.get("/metrics").text
    assert 'likeness_processes_by_engine{engine="CPUExecutionProvider"} 1.0' in metrics
    assert (ready["writes"], ready["upkeep"]) == ("accepted", "running")
    assert ready["erasure"] in ("done", "pending")


def test_maintenance_that_fails_is_reported_for_as_long_as_it_does(
    client: httpx.Client, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise StoreFull("The disk is full.")

    monkeypatch.setattr(services.gallery, "run_maintenance", full)
    ready = until(lambda: (found := client.get("/readyz")).json()["upkeep"] != "running" and found)
    assert (ready.status_code, ready.json()["upkeep"]) == (200, "storage_full")
    assert gauge(client, "likeness_upkeep_failing_seconds") > 0
    monkeypatch.undo()
    until(lambda: gauge(client, "likeness_upkeep_failing_seconds") == 0)


def gauge(client: httpx.Client, name: str) -> float:
    (line,) = [one for one in client.get("/metrics").text.splitlines() if one.startswith(name)]
    return float(line.split()[1])


def test_a_deletion_beside_a_backup_is_answered_as_pending(
    client: httpx.Client, services: Services, presidents: Any
) -> None:
    persons = f"/v1/collections/{presidents.name}/persons"
    with long_reader(services.settings.data_dir / "likeness.db"):
        receipt = client.delete(f"{persons}/obama").json()
        assert (receipt["deleted"], receipt["erased"]) == ({"persons": 1, "faces": 1}, "pending")
        assert client.get("/readyz").json()["erasure"] == "pending"
        assert gauge(client, "likeness_erasure_pending_seconds") > 0
    until(lambda: client.get("/readyz").json()["erasure"] != "pending")
    assert client.delete(f"{persons}/biden").json()["erased"] == "done"
    assert gauge(client, "likeness_erasure_pending_seconds") == 0


def test_what_is_left_in_saved_indexes_is_pending_too(
    client: httpx.Client, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: client.get("/readyz").json()["erasure"] == "done")
    monkeypatch.setattr(services.gallery._indexes, "unerased_s", lambda: 7.0)
    assert client.get("/readyz").json()["erasure"] == "pending"
    assert gauge(client, "likeness_erasure_pending_seconds") == 7


def test_metrics_name_routes_not_people(presidents: Any) -> None:
    presidents.client.get(f"/v1/collections/{presidents.name}/persons/obama")
    text = presidents.client.get("/metrics").text
    assert 'likeness_requests_total{method="POST",route="/v1/enroll",status="200"}' in text
    assert 'route="/v1/collections/{collection}/persons/{person_id}"' in text
    assert 'likeness_stage_seconds_bucket{le="0.05",stage="detect"}' in text
    assert "obama" not in text
    assert re.search(r"^process_open_fds \d", text, re.M)
    assert re.search(r"^likeness_open_indexes [1-9]", text, re.M)
    assert re.search(r"^likeness_open_index_bytes [1-9]", text, re.M)


def test_the_callers_request_id_comes_back(client: httpx.Client) -> None:
    answer = client.get("/v1/collections", headers={"x-request-id": "abc-1"})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "abc-1"
    forged = client.get("/livez", headers={"x-request-id": "a b\tc"})
    assert re.fullmatch(r"[0-9a-f]{32}", forged.headers["x-request-id"])


def test_unknown_routes_and_methods(client: httpx.Client) -> None:
    assert code_of(client.get("/v1/nothing")) == "route_not_found"
    answer = client.get("/v1/embed")
    assert (answer.status_code, code_of(answer)) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_an_unexpected_error_tells_an_id_and_nothing_of_the_inside(
    client: httpx.Client, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(services.gallery.store.database, "ping", broken)
    answer = client.get("/readyz")
    assert (answer.status_code, code_of(answer)) == (500, "internal_error")
    assert "secret" not in answer.text


def test_a_probe_while_an_index_is_loaded_is_no_failed_request(
    client: httpx.Client,
    services: Services,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def warnings() -> list[str]:
        answer = client.get("/readyz")
        assert (answer.status_code, code_of(answer)) == (503, "not_ready")
        found = [one for one in caplog.records if one.levelname == "WARNING"]
        caplog.clear()
        return [one.getMessage() for one in found]

    with monkeypatch.context() as loading:
        loading.setattr(services.maintenance, "ready", False)
        assert "request failed" not in warnings()
    # A worker that hangs is a failure, which no other line reports.
    monkeypatch.setattr(type(services.scheduler), "stalled", property(lambda _: True))
    assert "request failed" in warnings()


def test_readiness_does_not_wait_long_for_the_database(
    client: httpx.Client, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "READ_S", 0.05)
    may_go_on = threading.Event()
    reads = [services.scheduler._read.submit(may_go_on.wait, PATIENCE_S) for _ in range(4)]
    try:
        answer = client.get("/readyz")
        assert not any(read.done() for read in reads)
    finally:
        may_go_on.set()
    assert (answer.status_code, code_of(answer)) == (503, "store_unavailable")
    assert "was not read within 0.05 s" in answer.json()["detail"]
    monkeypatch.undo()
    assert until(lambda: client.get("/readyz").status_code == 200)


def test_the_docs_need_no_network(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert "http://" not in page
    assert "https://" not in page
    script = re.search(r'src="([^"]+swagger-ui-bundle\.js)"', page)
    assert script is not None
    assert client.get(script.group(1)).status_code == 200


@pytest.mark.parametrize(("access_log", "level"), [(True, "INFO"), (False, "DEBUG")])
def test_answered_requests_are_logged_where_the_settings_say_so(
    services: Services, caplog: pytest.LogCaptureFixture, access_log: bool, level: str
) -> None:
    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = SimpleNamespace(path="/v1/embed")
        await Response()(scope, receive, send)

    app = RequestContext(answering, services.metrics, access_log=access_log)
    scope = {"type": "http", "method": "POST", "path": "/v1/embed", "headers": []}
    with caplog.at_level("DEBUG", logger="likeness"):
        asyncio.run(app(scope, asyncio.Event, lambda _: asyncio.sleep(0)))  # type: ignore[arg-type]
    assert [(one.message, one.levelname) for one in caplog.records] == [("request", level)]


def test_an_error_in_the_middle_of_an_answer_is_logged_and_counted(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaking(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("the disk failed")

    def counted() -> float:
        labels = {"code": "internal_error"}
        return services.metrics.registry.get_sample_value("likeness_problems_total", labels) or 0.0

    before = counted()
    app = RequestContext(breaking, services.metrics)
    scope = {"type": "http", "method": "POST", "path": "/v1/embed", "headers": []}
    with caplog.at_level("ERROR", logger="likeness"), pytest.raises(RuntimeError):
        asyncio.run(app(scope, asyncio.Event, lambda _: asyncio.sleep(0)))  # type: ignore[arg-type]
    assert [(one.message, bool(one.exc_info)) for one in caplog.records] == [
        ("unexpected error", True)
    ]
    assert counted() == before + 1
