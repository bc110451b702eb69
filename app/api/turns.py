"""Turns on the event loop, so that nothing else waits for many requests or for long answers.

Sixty requests that arrive together would otherwise begin in the same round of the event loop, and
nothing else, a health check for example, would be served until all of them have begun. Long answers
are sent in pieces, so that they fill neither the memory nor the event loop's time.
"""

import asyncio
from collections import deque
from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# If a client does not read, the next piece waits.
PIECE = 64 * 1024


class Turns:
    """One request begins in each round of the event loop, in the order of arrival."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait until this request may begin; at once if no other begins in this round."""
        loop = asyncio.get_running_loop()
        if self._taken:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._taken = True
            loop.call_soon(self._give_next)

    def _give_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its client has not left
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._give_next)
                return
        self._taken = False


class SendInPieces:
    """Pure ASGI: of all long answers together, one piece is sent in each round of the event loop.

    A client's socket may accept a whole answer at once. With TLS, forty answers that become ready
    together would be encrypted for 28 ms, in which nothing else is served.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_pieces(message: Message) -> None:
            if len(message.get("body", b"")) < PIECE:
                await send(message)
                return
            for piece in pieces(message):
                await self._turns.take()
                await send(piece)

        await self._app(scope, receive, send_in_pieces)


def pieces(message: Message) -> Iterator[Message]:
    """A message of an answer as messages whose bodies have at most `PIECE` bytes."""
    body = memoryview(message.get("body", b""))
    if len(body) <= PIECE:
        yield message
        return
    for start in range(0, len(body), PIECE):
        yield {
            "type": "http.response.body",
            "body": bytes(body[start : start + PIECE]),
            "more_body": message.get("more_body", False) or start + PIECE < len(body),
        }
