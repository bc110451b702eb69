"""Errors -> RFC 9457 problem documents with a stable `code`; nothing internal leaks."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.api.problems import HTTP_CODES, MEDIA_TYPE, TYPE
from app.errors import InvalidRequest, LikenessError
from app.telemetry.logs import log, request_id
from app.telemetry.metrics import Metrics


def problem(
    status: int, code: str, title: str, detail: str, extra: Mapping[str, Any] | None = None
) -> JSONResponse:
    """One problem document. `extra["retry_after"]` (seconds) also becomes the header."""
    extra = dict(extra or {})
    body = {
        "type": f"{TYPE}{code}",
        "title": title,
        "status": status,
        # A client's own words may be quoted in it, broken characters and all.
        "detail": detail.encode(errors="replace").decode(),
        "code": code,
        "request_id": request_id.get(),
        **extra,
    }
    headers = {"Retry-After": str(extra["retry_after"])} if "retry_after" in extra else None
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


def install_error_handlers(app: FastAPI) -> None:
    """Answer each foreseen failure as a problem document; `RequestContext` has the rest."""
    app.add_exception_handler(LikenessError, _likeness_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def _answer(request: Request, error: LikenessError) -> JSONResponse:
    request.app.state.services.metrics.observe_problem(error.code)
    return problem(error.status, error.code, error.title, error.detail, error.extra)


def _likeness_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LikenessError)
    if error.status >= 500:
        log(logging.WARNING, "request failed", code=error.code, cause=repr(error.__cause__))
    return _answer(request, error)


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _answer(request, InvalidRequest(describe_validation(error.errors())))


def describe_validation(errors: Any) -> str:
    """Pydantic's findings as one sentence: `top_k: Input should be …; …`."""
    parts = []
    for item in errors:
        where = ".".join(str(part) for part in item["loc"] if part not in ("body", "query", "path"))
        message = str(item["msg"]).removeprefix("Value error, ")
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(parts) + "."


def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, "http_error")
    detail = str(error.detail)
    if error.status_code in HTTP_CODES:
        detail = "There is no such call; see /docs for those there are."
    answer = problem(error.status_code, code, str(error.detail), detail)
    answer.headers.update(error.headers or {})
    return answer


def unexpected_error(error: Exception, metrics: Metrics) -> JSONResponse:
    """Answer for a failure nobody foresaw: the log gets everything, the client an id."""
    metrics.observe_problem("internal_error")
    log(logging.ERROR, "unexpected error", error)
    return problem(
        500,
        "internal_error",
        "Internal error",
        "Something went wrong here, not in your request. Tell the operator the request_id.",
    )
