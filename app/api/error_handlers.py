"""Errors -> RFC 9457 problem documents with a stable `code`; no internal detail is shown."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.api.problems import MEDIA_TYPE, TYPE
from app.errors import (
    InvalidRequest,
    LikenessError,
    MethodNotAllowed,
    RouteNotFound,
    UnsupportedEncoding,
)
from app.telemetry.logs import log, request_id
from app.telemetry.metrics import Metrics

# Findings about one request that its answer lists; the others are counted.
MOST_FINDINGS = 10
CODE = "likeness.code"  # of the problem that is answered, in the scope of a request
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


def problem(error: LikenessError) -> JSONResponse:
    """The problem document of an error. `extra["retry_after"]` (seconds) is also a header."""
    headers = {}
    if (wait := error.extra.get("retry_after")) is not None:
        headers["Retry-After"] = str(wait)
    if isinstance(error, UnsupportedEncoding):
        headers["Accept-Encoding"] = "identity"  # RFC 9110, 15.5.16
    return JSONResponse(problem_members(error), error.status, headers, media_type=MEDIA_TYPE)


def problem_members(error: LikenessError) -> dict[str, Any]:
    """The members of the problem document of an error."""
    return {
        "type": f"{TYPE}{error.code}",
        "title": error.title,
        "status": error.status,
        # A client's own words may be quoted in it, broken characters and all.
        "detail": error.detail.encode(errors="replace").decode(),
        "code": error.code,
        "request_id": request_id.get(),
        **error.extra,
    }


def install_error_handlers(app: FastAPI) -> None:
    """Answer expected errors as problem documents; `RequestContext` answers all others.

    The handlers are coroutines: Starlette would call functions on threads, up to forty of them.
    """
    app.add_exception_handler(LikenessError, likeness_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def _answer(request: Request, error: LikenessError) -> JSONResponse:
    request.app.state.services.metrics.observe_problem(error.code)
    request.scope[CODE] = error.code
    return problem(error)


async def likeness_error(request: Request, error: Exception) -> JSONResponse:
    """The answer to an error that a call raised, which is counted and logged."""
    assert isinstance(error, LikenessError)
    if error.status >= 500:
        log(logging.WARNING, "request failed", code=error.code, cause=repr(error.__cause__))
    return _answer(request, error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _answer(request, InvalidRequest(describe_validation(error.errors())))


def describe_validation(errors: Sequence[Any]) -> str:
    """Pydantic's findings as one sentence: `top_k: Input should be …; …`; the first of many."""
    parts: list[str] = []
    for item in errors[:MOST_FINDINGS]:
        where = ".".join(str(part) for part in item["loc"] if part not in ("body", "query", "path"))
        message = str(item["msg"]).removeprefix("Value error, ").removesuffix(".")
        parts.append(f"{where}: {message}" if where else message)
    if len(errors) > MOST_FINDINGS:
        parts.append(f"and {len(errors) - MOST_FINDINGS:,} more")
    return "; ".join(parts) + "."


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Problem documents for errors raised by FastAPI and Starlette."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, LikenessError):  # of reading the body; FastAPI wraps it
        return _answer(request, error.__cause__)
    if error.status_code == MethodNotAllowed.status:
        allowed = ", ".join(_methods(request))
        answer = _answer(
            request,
            MethodNotAllowed(f"{request.method} is not a method of this path; it has {allowed}."),
        )
        answer.headers["Allow"] = allowed
        return answer
    if error.status_code == RouteNotFound.status:
        return _answer(
            request, RouteNotFound(f"There is no call {request.url.path}; /docs lists all calls.")
        )
    # Only bodies that cannot be read are left.
    return _answer(request, InvalidRequest(f"{error.detail}."))


def _methods(request: Request) -> list[str]:
    """The methods of a path. Starlette's own header has only those of its first route."""
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


def unexpected_error(error: Exception, metrics: Metrics) -> JSONResponse:
    """The answer to an unexpected error: the log gets the details, the client an id."""
    metrics.observe_problem("internal_error")
    log(logging.ERROR, "unexpected error", error)
    return problem(
        LikenessError(
            "The service failed; your request is not the cause. Give the operator the request_id."
        )
    )
