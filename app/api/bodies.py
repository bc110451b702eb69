"""Reads bodies of requests within limits of length and time."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from app.api.transfers import Transfer, Transfers
from app.errors import RequestTimeout, RequestTooLarge, UnsupportedEncoding

GRACE_S = 10.0
# Key in a request's scope: its whole body.
BODY = "likeness.body"


class SteadyReceive:
    """`receive` of a request whose body must arrive at a lowest rate."""

    def __init__(self, receive: Receive, transfer: Transfer, min_rate: int) -> None:
        self._receive = receive
        self._transfer = transfer
        self._min_rate = min_rate
        self._waited = 0.0

    async def __call__(self) -> Message:
        """The next message. Raises RequestTimeout."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._left()):
                message = await self._receive()
        except TimeoutError as error:
            raise RequestTimeout(
                f"The body arrived more slowly than {self._min_rate:,} bytes a second; send it "
                "again over a faster connection or in smaller parts."
            ) from error
        self._waited += time.monotonic() - start
        if message["type"] == "http.request":
            self._transfer.moved += len(message.get("body", b""))
        return message

    def _left(self) -> float | None:
        """Seconds that waiting for the client may still take; other time is not counted."""
        if not self._min_rate:
            return None
        return GRACE_S + self._transfer.moved / self._min_rate - self._waited


def announced_length(scope: Scope) -> int:
    """Bytes of the body according to Content-Length; 0 without that header."""
    announced = Headers(scope=scope).get("content-length", "")
    return int(announced) if announced.isdigit() and len(announced) < 20 else 0


def check_encoding(scope: Scope) -> None:
    """Refuse a compressed body: its length would say nothing of what it takes. Raises
    UnsupportedEncoding."""
    headers = Headers(scope=scope)
    for name, understood in (("content-encoding", "identity"), ("transfer-encoding", "chunked")):
        given = [one.strip() for value in headers.getlist(name) for one in value.split(",")]
        for coding in filter(None, given):
            if coding.lower() != understood:
                raise UnsupportedEncoding(
                    f"The body has the {name.title()} '{coding[:40]}', which this service does not "
                    "decode; send the body as it is, without that header."
                )


async def read_body(
    scope: Scope,
    receive: Receive,
    transfers: Transfers,
    *,
    limit: int,
    min_rate: int,
    begun: Callable[[Transfer], None],
) -> bytearray:
    """The whole body; `begun` is called with its transfer.

    Raises RequestTooLarge, RequestTimeout, Overloaded and ClientDisconnect.
    """
    if announced_length(scope) > limit:
        raise _too_large(limit)
    headers, body = Headers(scope=scope), bytearray()
    if "transfer-encoding" not in headers and not announced_length(scope):
        await _next(receive)
        return body
    with transfers.open() as transfer:
        begun(transfer)
        steady = SteadyReceive(receive, transfer, min_rate)
        while True:
            message = await _next(steady)
            piece: bytes = message.get("body", b"")
            if len(body) + len(piece) > limit:
                raise _too_large(limit)
            transfers.hold(transfer, len(piece))
            body += piece
            if not message.get("more_body", False):
                return body


async def _next(receive: Callable[[], Awaitable[Message]]) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is larger than {limit:,} bytes; split the request.")


async def body_of(request: Request) -> bytes | bytearray:
    """The body of a call as `Admission` has read it, without copying it."""
    kept: bytearray | None = request.scope.get(BODY)
    return await request.body() if kept is None else kept
