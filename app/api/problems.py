"""Errors -> RFC 9457 problem documents with a stable `code`, without internal details; and which of
them a route can answer with, for the OpenAPI document."""

import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app import errors
from app.errors import (
    InvalidRequest,
    LikenessError,
    MethodNotAllowed,
    NotReady,
    RouteNotFound,
    UnknownField,
    UnsupportedEncoding,
)
from app.findings import findings, only_unknown_names
from app.telemetry.logs import log, request_id
from app.telemetry.metrics import Metrics

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:likeness:problem:"

# Problems of any call below /v1.
ANY_CALL: tuple[type[LikenessError], ...] = (
    errors.InvalidRequest,
    errors.UnknownField,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.RateLimited,
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.StoreUnavailable,
    errors.EncryptionKeyMissing,
    errors.DamagedData,
    LikenessError,
)
ANY_BODY = (errors.RequestTooLarge, errors.RequestTimeout, errors.UnsupportedEncoding)
ANY_WRITE = (errors.StoreFull,)
PHOTOS = (
    *ANY_BODY,
    errors.QuotaExceeded,
    errors.MissingField,
    errors.UnsupportedMediaType,
    errors.EmptyImage,
    errors.UnsupportedImage,
    errors.UnreadableImage,
    errors.ImageTooLarge,
    errors.LivenessUnavailable,
    errors.WorkerDied,
)
ONE_FACE = (
    errors.NoFace,
    errors.SeveralFaces,
    errors.FaceTooSmall,
    errors.LowQuality,
    errors.NotLive,
)
IN_COLLECTION = (errors.CollectionNotFound,)
IN_SPACE = (*IN_COLLECTION, errors.EmbeddingSpaceMismatch)


def problem_codes() -> list[str]:
    """Every code that a problem document can carry, sorted."""
    classes = [one for one in vars(errors).values() if isinstance(one, type)]
    found = {
        one.code
        for one in classes
        if issubclass(one, LikenessError) and not issubclass(one, errors.StartupError)
    }
    return sorted(found)


class Problem(BaseModel):
    """RFC 9457 problem document; `code` is stable, further members depend on it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:likeness:problem:no_face",
                    "title": "No face was found",
                    "status": 422,
                    "detail": "No face was found in the photo; send one where the face is at "
                    "least 32 pixels wide, upright and not covered.",
                    "code": "no_face",
                    "request_id": "0d7c4c0b2c5f4c0c8f5d3b1f8e6a9b7d",
                }
            ]
        },
    )
    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(json_schema_extra={"enum": list(problem_codes())})]
    request_id: str | None


def problems(
    *given: Iterable[type[LikenessError]], always: Iterable[type[LikenessError]] = ANY_CALL
) -> dict[int | str, dict[str, Any]]:
    """The responses, by status, of a call with the given problems and those of any call below /v1.
    Each lists its codes, in its description and as `x-problem-codes`."""
    by_status: dict[int, dict[str, str]] = {}
    for one in [*always, *(error for group in given for error in group)]:
        by_status.setdefault(one.status, {})[one.code] = one.title
    return {status: _response(status, codes) for status, codes in sorted(by_status.items())}


def _response(status: int, titles: dict[str, str]) -> dict[str, Any]:
    code, title = next(iter(titles.items()))
    example = {
        "type": f"{TYPE}{code}",
        "title": title,
        "status": status,
        "detail": "What happened, to which value, and what to do.",
        "code": code,
        "request_id": "0d7c4c0b2c5f4c0c8f5d3b1f8e6a9b7d",
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        "description": " ".join(f"`{code}`: {title}." for code, title in titles.items()),
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
        "x-problem-codes": list(titles),
    }


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
        # While it starts or stops, each request to `/readyz` gets this answer: nothing has failed.
        waits = isinstance(error, NotReady) and error.__cause__ is None
        level = logging.DEBUG if waits else logging.WARNING
        log(level, "request failed", code=error.code, cause=repr(error.__cause__))
    return _answer(request, error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    kind = UnknownField if only_unknown_names(found) else InvalidRequest
    return _answer(request, kind(describe_validation(found)))


def describe_validation(errors: Sequence[Any]) -> str:
    """Pydantic's findings as one sentence: `top_k: Input should be …; …`; the first of many."""
    found = findings(errors)
    parts: list[str] = []
    for place, message in found[:MOST_FINDINGS]:
        where = ".".join(part for part in place.split(".") if part not in ("body", "query", "path"))
        parts.append(f"{where}: {message}" if where else message)
    if len(found) > MOST_FINDINGS:
        parts.append(f"and {len(found) - MOST_FINDINGS:,} more")
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


def note_unexpected(error: Exception, metrics: Metrics) -> None:
    """Log and count an unexpected error."""
    metrics.observe_problem("internal_error")
    log(logging.ERROR, "unexpected error", error)


def unexpected_error(error: Exception, metrics: Metrics) -> JSONResponse:
    """The answer to an unexpected error: the log gets the details, the client an id."""
    note_unexpected(error, metrics)
    return problem(
        LikenessError(
            "The service failed; your request is not the cause. Give the operator the request_id."
        )
    )
