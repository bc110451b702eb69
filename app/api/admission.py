"""The door of the API: how many requests are inside, for how long, and whether anybody waits.

A refusal comes before the body is read. A request whose time is over or whose client has gone is
cancelled, which takes its photos out of the queue; what the database is already writing is written.
"""

import asyncio
import logging
import re

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import problem
from app.errors import DeadlineExceeded, LikenessError, Overloaded
from app.inference.scheduler import RETRY_AFTER_S
from app.services import Services
from app.telemetry.logs import log

PREFIX = "/v1/"
LONG = re.compile(r"/v1/collections/[^/]+/(imports|imports/[^/]+/events|hygiene)")
# Nobody reads this answer; the log and the metrics do. The number is nginx's.
CLIENT_GONE = 499


class Admission:
    """Pure ASGI: admits requests to `/v1`, ends those that nobody waits for."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        try:
            with self._services.scheduler.admit(self._size(scope)):
                await _Exchange(self._app, scope, receive, send).run(self._timeout(scope))
        except (Overloaded, DeadlineExceeded) as error:
            await self._refuse(error)(scope, receive, send)

    def _timeout(self, scope: Scope) -> float:
        """Uploads of archives take as long as their network does, and so does watching them; a
        collection is looked through as long as it is large."""
        if LONG.fullmatch(scope["path"]):
            return self._services.settings.import_timeout
        return self._services.settings.request_timeout

    def _size(self, scope: Scope) -> int:
        """Bytes of the body as announced; the most there may be where nothing is."""
        headers, most = Headers(scope=scope), self._services.settings.max_request_bytes
        announced = headers.get("content-length", "")
        if announced.isdigit():
            return min(int(announced), most)
        return most if "transfer-encoding" in headers else 0

    def _refuse(self, error: LikenessError) -> Response:
        self._services.metrics.observe_problem(error.code)
        log(logging.WARNING, "request refused", code=error.code)
        return problem(error.status, error.code, error.title, error.detail, error.extra)


class _Exchange:
    """One request under way, watched for the client's leaving."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._answered = False
        self._gone = False
        self._watcher: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()

    async def run(self, timeout_s: float) -> None:
        """Raises DeadlineExceeded when the time is over before an answer has begun."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._app(self._scope, self._receive_and_watch, self._send_answer)
        except TimeoutError as error:
            if self._answered:
                raise
            raise DeadlineExceeded(
                f"No answer was ready within {timeout_s:g} s; try again in a moment, with fewer "
                "photos in one call.",
                {"retry_after": RETRY_AFTER_S},
            ) from error
        except ClientDisconnect:
            await self._note_gone()
        except asyncio.CancelledError:
            if not self._gone or self._task is None:
                raise
            self._task.uncancel()
            await self._note_gone()
        finally:
            if self._watcher:
                self._watcher.cancel()

    async def _receive_and_watch(self) -> Message:
        message = await self._receive()
        whole = message["type"] == "http.request" and not message.get("more_body", False)
        if whole and self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        return message

    async def _watch(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._answered and self._task:
            self._gone = True
            self._task.cancel()

    async def _send_answer(self, message: Message) -> None:
        self._answered = True
        await self._send(message)

    async def _note_gone(self) -> None:
        if not self._answered:
            await Response(status_code=CLIENT_GONE)(self._scope, self._receive, self._send)
