"""Routes whose functions are called without FastAPI's dependencies."""

import asyncio
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from starlette.types import Message, Receive, Scope, Send

from app.api.context import Context
from app.api.direct_routes import DirectRoutes
from app.api.main import OF_PHOTOS


async def refusing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("it went to FastAPI")


def answer_of(app: Any, *, body: bytes = b"", **scope: Any) -> tuple[int, bytes]:
    """Status and body of the answer to a POST."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "POST", "headers": [], "query_string": b"", **scope}
    asyncio.run(app(whole, receive, send))
    return sent[0]["status"], sent[1]["body"]


def test_calls_that_take_photos_are_called_directly() -> None:
    direct = DirectRoutes(refusing, OF_PHOTOS, [])._direct
    assert {path for _, path in direct} == {
        f"/v1/{name}" for name in ("detect", "embed", "enroll", "verify", "identify")
    }


def router_of(function: Any) -> list[APIRouter]:
    router = APIRouter()
    router.post("/call", response_model=None)(function)
    return [router]


async def with_a_query(request: Request, context: Context, limit: int) -> Response:
    raise NotImplementedError


async def with_another_dependency(request: Request, one: Annotated[str, Depends(id)]) -> Response:
    raise NotImplementedError


async def with_a_needed_header(request: Request, context: Context, x: Annotated[str, Header()]
                               ) -> Response:  # fmt: skip
    raise NotImplementedError


async def with_a_model(request: Request, context: Context) -> dict[str, int]:
    raise NotImplementedError


@pytest.mark.parametrize(
    "function", [with_a_query, with_another_dependency, with_a_needed_header, with_a_model]
)
def test_a_function_that_needs_fastapi_is_refused_at_the_start(function: Any) -> None:
    with pytest.raises(TypeError, match="cannot be called directly"):
        DirectRoutes(refusing, router_of(function), [])


def test_a_dependency_of_all_routes_is_refused_at_the_start() -> None:
    """It would not run for the routes that are called directly."""
    app = FastAPI(dependencies=[Depends(id)])
    with pytest.raises(TypeError, match="does not run"):
        DirectRoutes(app, OF_PHOTOS, app.router.dependencies)


async def with_an_optional_header(
    request: Request, context: Context, x_name: Annotated[str | None, Header()] = None
) -> Response:
    raise NotImplementedError


def test_a_header_that_fastapi_checks_is_left_to_it() -> None:
    app = DirectRoutes(FastAPI(), router_of(with_an_optional_header), [])
    sent = {"path": "/call", "headers": [(b"x-name", b"a")], "root_path": ""}
    assert answer_of(app, **sent)[0] == 404


def test_errors_are_the_same_as_through_fastapi(client: httpx.Client) -> None:
    """An optional header of the call makes it go through FastAPI."""
    ways: list[dict[str, str]] = [{}, {"idempotency-key": "a"}]
    direct, usual = (
        client.post("/v1/enroll", params={"person_id": "a"}, content=b"no photo", headers={
            "content-type": "image/jpeg", "x-request-id": "one", **way
        })
        for way in ways
    )  # fmt: skip
    assert direct.status_code == usual.status_code == 415
    assert direct.json() == usual.json()
    assert direct.headers["content-type"] == usual.headers["content-type"]


def test_a_bad_optional_header_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/enroll", params={"person_id": "a"}, content=b"",
                         headers={"idempotency-key": "é".encode()})  # fmt: skip
    assert answer.json()["code"] == "invalid_request"
