"""One pure ASGI layer around every request: its id, its log line, its metrics, the answer to an
unexpected error, and its entry in the audit log if it is refused or fails.
"""

import logging
import os
import re
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.keys import Scope as KeyScope
from app.access.refused import CallOutcome, RefusedCall, RefusedCalls
from app.api.connection import PIPELINED
from app.api.problems import CODE, note_unexpected, unexpected_error
from app.api.proxies import NONE_TRUSTED, Proxies
from app.api.turns import Turns
from app.errors import CollectionNotFound, Forbidden, LikenessError, RateLimited, Unauthenticated
from app.store.identifiers import NAME_PATTERN
from app.telemetry.logs import client_address, log, request_id
from app.telemetry.metrics import Metrics

ANONYMOUS = "anonymous"  # the actor of calls without a valid key
CHANGING = (KeyScope.ENROLL, KeyScope.MANAGE, KeyScope.ADMIN)  # scopes of calls, except GET
REFUSED = 400  # statuses from here on
_COLLECTION = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Operation:
    """What is called: the scope it needs, the collection that its path names, and its route."""

    scope: KeyScope
    collection: str | None
    route: str


@dataclass(frozen=True, slots=True)
class ObservedCall:
    """One request. `limited`: whether its key sees only some collections."""

    noted: RefusedCalls
    actor: str
    method: str
    operation: Operation | None
    limited: bool

    def refused(self, error: LikenessError) -> None:
        """Note that it was answered with this error."""
        self._note(error.code, error.status)

    def run(self, app: ASGIApp) -> ASGIApp:
        """The application; refusals and failures of this call are noted."""

        async def running(scope: Scope, receive: Receive, send: Send) -> None:
            async def noting(message: Message) -> None:
                if message["type"] == "http.response.start" and message["status"] >= REFUSED:
                    self._note(str(scope.get(CODE, message["status"])), message["status"])
                await send(message)

            try:
                await app(scope, receive, noting)
            except Exception:  # answered further out
                self._note(LikenessError.code, LikenessError.status)
                raise

        return running

    def _note(self, code: str, status: int) -> None:
        outcome = self._outcome(code, status)
        if outcome is None:
            return
        found = self.operation
        call = f"{self.method} {'unmatched' if found is None else found.route}"
        # Without a key anybody could send any names.
        name = None if found is None or self.actor == ANONYMOUS else found.collection
        if name is not None and not _COLLECTION.match(name):
            name = None
        origin = request_id.get(), client_address.get()
        self.noted.note(RefusedCall(self.actor, outcome, call, code, name), origin)

    @property
    def _changes(self) -> bool:
        """Whether it should change something."""
        found = self.operation
        return found is not None and found.scope in CHANGING and self.method != "GET"

    def _outcome(self, code: str, status: int) -> CallOutcome | None:
        """What an answer is for the audit log; None if it is not written there."""
        hidden = self.limited and code == CollectionNotFound.code
        if hidden or status in (Unauthenticated.status, Forbidden.status):
            return CallOutcome.DENIED
        if status == RateLimited.status:
            return CallOutcome.LIMITED
        return CallOutcome.FAILED if self._changes else None


HEADER = b"x-request-id"
# In the scope: the template of a call's path, also if the call is refused before it is routed.
ROUTE = "likeness.route"
_ACCEPTED_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
LIVE, READY = "/livez", "/readyz"
HEALTH = (LIVE, READY)
_QUIET_ROUTES = (*HEALTH, "/metrics")


class RequestContext:
    """Gives a request its id (the client's own if it is a plain one) and records the outcome.

    An error that nothing inside caught is answered here, where the id is still known.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        root_path: str = "",
        proxies: Proxies = NONE_TRUSTED,
        *,
        access_log: bool = False,
    ) -> None:
        """`access_log`: whether answered requests are logged at level INFO, not DEBUG."""
        self._app = app
        self._proxies = proxies
        self._root_path = root_path
        self._metrics = metrics
        self._level = logging.INFO if access_log else logging.DEBUG
        # `/livez`, which costs least, begins at once; `/readyz` waits for its own kind only.
        # A request sent before an earlier one was answered waits like all others.
        self._ready, self._others = Turns(), Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _set_root_path(scope, self._root_path)
        self._proxies.apply(scope)
        current = _offered_id(scope) or os.urandom(16).hex()
        token = request_id.set(current)
        client = client_address.set(scope["client"][0] if scope.get("client") else None)
        start = time.perf_counter()
        status = 500
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                started = True
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (HEADER, current.encode())]
            await send(message)

        try:
            await self._turn(scope)
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if started:  # too late for another answer: the server cuts the connection
                note_unexpected(error, self._metrics)
                raise
            await unexpected_error(error, self._metrics)(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - start)
            request_id.reset(token)
            client_address.reset(client)

    async def _turn(self, scope: Scope) -> None:
        """Wait until the request may begin."""
        if scope["path"] not in HEALTH or scope.get(PIPELINED):
            await self._others.take()
        elif scope["path"] == READY:
            await self._ready.take()

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's template, not the path: paths hold person ids.
        route = getattr(scope.get("route"), "path", scope.get(ROUTE)) or "unmatched"
        self._metrics.observe_request(route, scope["method"], status, seconds)
        level = logging.DEBUG if route in _QUIET_ROUTES else self._level
        log(level, "request", method=scope["method"], route=route, status=status,
            ms=round(seconds * 1000, 1))  # fmt: skip


def _offered_id(scope: Scope) -> str | None:
    """The client's own id of a request, if it is a plain one."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return value.decode() if _ACCEPTED_ID.fullmatch(value) else None
    return None


def _set_root_path(scope: Scope, root: str) -> None:
    """Remove the proxy's path if the proxy left it in the request, and set ASGI's `root_path`."""
    if root:
        scope["root_path"] = root
        # Repeatedly: Starlette would remove it once more, after what protects the paths below it.
        while scope["path"].startswith(f"{root}/"):
            scope["path"] = scope["path"][len(root) :]
