"""Sends long answers in pieces, so that they fill neither the memory nor the event loop's time."""

from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.turns import Turns

# If a client does not read, the next piece waits.
PIECE = 64 * 1024


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
