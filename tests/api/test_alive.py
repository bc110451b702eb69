"""`/livez` is answered whatever else is asked."""

import asyncio
from typing import Any

import fastapi.routing
import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.connection import PIPELINED
from app.api.endpoints.system import AnswerAlive
from app.api.main import create_app
from app.api.middleware import RequestContext
from app.services import Services


async def working(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """An application that has much to do."""
    await asyncio.sleep(60)


async def paths_answered(app: ASGIApp, *requests: dict[str, Any]) -> list[str]:
    """The paths of those that are answered in the first round of the event loop."""
    answered: list[str] = []

    async def ask(scope: dict[str, Any]) -> None:
        async def send(_message: Any) -> None:
            answered.append(scope["path"])

        whole = {"type": "http", "method": "GET", "headers": [], "query_string": b"", **scope}
        await app(whole, lambda: asyncio.sleep(60), send)  # type: ignore[arg-type, return-value]

    tasks = [asyncio.create_task(ask(scope)) for scope in requests]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    return sorted(set(answered))


def test_it_waits_for_no_turn(services: Services) -> None:
    """Unlike one that is sent before an earlier answer."""
    app = RequestContext(AnswerAlive(working), services.metrics)
    others = [{"path": "/v1/collections"}] * 9
    first = {"path": "/livez"}
    second = {"path": "/livez", PIPELINED: True}
    assert asyncio.run(paths_answered(app, *others, first)) == ["/livez"]
    assert asyncio.run(paths_answered(app, *others, second)) == []


def test_it_is_counted_and_has_an_id(client: httpx.Client) -> None:
    answer = client.get("/livez", headers={"x-request-id": "probe-1"})
    assert answer.headers["x-request-id"] == "probe-1"
    assert answer.headers["content-type"] == "application/json"
    assert 'route="/livez",status="200"' in client.get("/metrics").text
    head = client.head("/livez")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.content))
    assert client.post("/livez").status_code == 405


def test_no_route_is_built_in_a_request(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI would build all of them in the first one, on the event loop."""
    app = create_app(services)

    def build(**_: object) -> None:
        raise AssertionError("a route is built")

    monkeypatch.setattr(fastapi.routing._EffectiveRouteContext, "from_api_route", build)

    async def ask() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return (await client.post("/livez")).status_code

    assert asyncio.run(ask()) == 405
