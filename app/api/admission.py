"""Admission: limits how many requests are processed at a time, and for how long.

Every request below `/v1` passes through here. First its body is read, within limits of length and
time. Then it is admitted or refused. Its answer is sent after it has stopped counting as admitted.
A request is cancelled when its time is over or its client has disconnected: its photos leave the
queue, but a database write that has begun is finished.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.bodies import BODY, Announced, SteadyReceive, read_body
from app.api.connection import ABORT, CROWDED, DEPARTURE
from app.api.departure import Departure
from app.api.problems import problem
from app.api.transfers import Kind, Transfer, TransfersByKind, body_limit, kind_of, work_limit
from app.api.turns import PIECE, pieces
from app.errors import DeadlineExceeded, LikenessError, Overloaded
from app.inference.scheduler import RETRY_AFTER_S
from app.services import Services
from app.telemetry.logs import log

PREFIX = "/v1/"
# Nobody reads this answer; the log and the metrics do. The number is nginx's.
CLIENT_GONE = 499


class Admission:
    """Pure ASGI: admits requests to `/v1`, and ends those whose client has disconnected."""

    def __init__(self, app: ASGIApp, services: Services, transfers: TransfersByKind) -> None:
        self._app = app
        self._services = services
        self._transfers = transfers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(
            self._app, self._services, self._transfers, scope=scope, receive=receive, send=send
        )
        try:
            await exchange.run()
        except LikenessError as error:
            if exchange.answering:
                await exchange.cut()
            else:
                await self._refuse(error)(scope, receive, send)
        except ClientDisconnect:
            if not exchange.answering:
                await Response(status_code=CLIENT_GONE)(scope, receive, send)

    def _refuse(self, error: LikenessError) -> Response:
        self._services.metrics.observe_problem(error.code)
        log(logging.WARNING, "request refused", code=error.code)
        return problem(error)


class _Exchange:
    """One request that is being processed."""

    def __init__(
        self,
        app: ASGIApp,
        services: Services,
        transfers: TransfersByKind,
        *,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._app = app
        self._services = services
        self._settings = services.settings
        self._transfers = transfers
        self._scope = scope
        self._receive = receive
        self._send = send
        self._task = asyncio.current_task()
        self._gone = False
        self._transfer: Transfer | None = None
        self.answering = False

    async def run(self) -> None:
        """Process it. Raises LikenessError if refused, ClientDisconnect if its client left."""
        if self._scope.get(CROWDED):
            raise Overloaded(
                "The service has reached its limit of connections; try again in a moment.",
                {"retry_after": RETRY_AFTER_S},
            )
        announced = Announced.by(self._scope)
        try:
            kind = kind_of(self._scope["method"], self._scope["path"])
            if kind is Kind.UPLOAD:
                await self._upload()
            elif kind is Kind.STREAM:
                await self._stream()
            else:
                await self._call(kind, announced)
        except asyncio.CancelledError:
            why: BaseException | None = self._transfer.ended_by if self._transfer else None
            why = why or (ClientDisconnect() if self._gone else None)
            if why is None or self._task is None:
                raise
            self._task.uncancel()
            raise why from None

    # --- kinds --------------------------------------------------------------------------------

    async def _call(self, kind: Kind, announced: Announced) -> None:
        settings = self._settings
        limit = body_limit(self._scope, settings)
        # Refused before its body is read, where that is certain; one that is too long, as such.
        if kind is Kind.CALL and announced.length <= limit:
            self._services.scheduler.check(announced.length)
        body = await self._received(announced, limit)
        with self._admitted(kind, len(body)):
            answer = await self._worked(body, work_limit(self._scope, settings))
        del body
        self._scope.pop(BODY, None)
        await self._sent(answer)

    def _admitted(self, kind: Kind, size: int) -> AbstractContextManager[Any]:
        if kind is Kind.DELETION:
            return self._transfers.deletions.open()
        return self._services.scheduler.admit(size)

    async def _received(self, announced: Announced, limit: int) -> bytearray:
        """The body. If it is the slowest and too many arrive, this task is cancelled."""
        return await read_body(
            announced,
            self._receive,
            self._transfers.receiving,
            limit=limit,
            min_rate=self._settings.min_body_rate,
            begun=self._own,
        )

    async def _worked(self, body: bytearray, seconds: float) -> list[Message]:
        """The answer of the application to a whole body."""
        self._scope[BODY] = body
        answer: list[Message] = []
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                return await self._receive()
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            answer.append(message)

        departure: Departure | None = self._scope.get(DEPARTURE)
        watcher = None
        if departure is not None:
            departure.watch(self._leave)
        else:  # another server than ours
            watcher = asyncio.create_task(self._watch())
        message = (
            f"No answer was ready within {seconds:g} s; try again in a moment, with fewer photos "
            "in one call."
        )
        try:
            async with _deadline(seconds, message):
                await self._app(self._scope, receive, send)
        finally:
            if departure is not None:
                departure.ignore()
            if watcher is not None:
                watcher.cancel()
        return answer

    async def _watch(self) -> None:
        if (await self._receive())["type"] == "http.disconnect":
            self._leave()

    def _leave(self) -> None:
        """The client has left: nobody would read the answer."""
        if self._task is not None:
            self._gone = True
            self._task.cancel()

    async def _upload(self) -> None:
        with self._transfers.uploads.open() as transfer:
            self._own(transfer)
            steady = SteadyReceive(self._receive, transfer, self._settings.min_body_rate)
            await self._through(steady, transfer)

    async def _stream(self) -> None:
        with self._transfers.streams.open() as transfer:
            self._own(transfer)
            await self._through(self._receive, transfer)

    async def _through(self, receive: Receive, transfer: Transfer) -> None:
        async def send(message: Message) -> None:
            self.answering = True
            transfer.moved += len(message.get("body", b""))
            await self._send(message)

        limit = self._settings.import_timeout
        message = (
            f"The upload or the event stream took longer than {limit:g} s; send the archive in "
            "parts, or request the events again."
        )
        async with _deadline(limit, message):
            await self._app(self._scope, receive, send)

    def _own(self, transfer: Transfer) -> None:
        self._transfer = transfer

    # --- the answer ---------------------------------------------------------------------------

    async def _sent(self, answer: list[Message]) -> None:
        size = sum(len(message.get("body", b"")) for message in answer)
        self.answering = True
        if size <= PIECE:
            for message in answer:
                await self._send(message)
            return
        with self._transfers.sending.open() as transfer:
            self._own(transfer)
            self._transfers.sending.hold(transfer, size)
            for message in answer:
                for piece in pieces(message):
                    transfer.moved += len(piece.get("body", b""))
                    await self._send(piece)

    async def cut(self) -> None:
        """Abort the connection, so that the client sees that its answer is incomplete."""
        abort = self._scope.get(ABORT)
        if abort is None:
            raise RuntimeError("the answer was not finished")
        abort()
        while (await self._receive())["type"] != "http.disconnect":
            pass


@asynccontextmanager
async def _deadline(seconds: float, message: str) -> AsyncIterator[None]:
    """Raises DeadlineExceeded if the block takes longer. A TimeoutError that the block raises
    itself, as a network disk does, is passed on."""
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise DeadlineExceeded(message, {"retry_after": RETRY_AFTER_S}) from error
