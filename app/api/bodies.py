"""Reads bodies of requests within limits of length and time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from app.api.transfers import Transfer, Transfers
from app.errors import RequestTimeout, RequestTooLarge, UnsupportedEncoding

GRACE_S = 10.0
# Key in a request's scope: its whole body.
BODY = "likeness.body"
# Headers that name codings of the body, and the one coding of each that is understood.
UNDERSTOOD = {b"content-encoding": "identity", b"transfer-encoding": "chunked"}


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


@dataclass(frozen=True, slots=True)
class Announced:
    """What the head of a request says of its body: its bytes, 0 if it does not say; and whether
    there may be one."""

    length: int
    any: bool

    @classmethod
    def by(cls, scope: Scope) -> "Announced":
        """Raises UnsupportedEncoding for a compressed body: its length would say nothing of what it
        takes."""
        length, chunked = 0, False
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = int(value) if value.isdigit() and len(value) < 20 else 0
            elif name in UNDERSTOOD:
                chunked = chunked or name == b"transfer-encoding"
                _check_codings(name.decode(), value.decode("latin-1"), UNDERSTOOD[name])
        return cls(length, chunked or length > 0)


def _check_codings(name: str, value: str, understood: str) -> None:
    for coding in filter(None, (one.strip() for one in value.split(","))):
        if coding.lower() != understood:
            raise UnsupportedEncoding(
                f"The body has the {name.title()} '{coding[:40]}', which this service does not "
                "decode; send the body as it is, without that header."
            )


async def read_body(
    announced: Announced,
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
    if announced.length > limit:
        raise _too_large(limit)
    body = bytearray()
    if not announced.any:
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
