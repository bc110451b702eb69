"""Access control: whose request it is, and whether its key allows the call.

Every request passes through here before its body is read; all but health checks and the API's
description need a key. Each route declares the scope that the key must have; an application with a
route that declares none is not created. A collection that a key is not for is answered as if it did
not exist.
"""

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.keys import WHOLE_SERVICE, AccessKey
from app.access.keys import Scope as KeyScope
from app.access.limiter import Limiter
from app.access.oidc_rules import KEY_ID
from app.access.probing import ProbingMonitor
from app.access.refused import RefusedCalls
from app.access.registry import LEASE_S, AccessRegistry
from app.api.connection import ABORT
from app.api.middleware import ANONYMOUS, ROUTE, ObservedCall, Operation
from app.api.problems import problem
from app.api.transfers import Kind, kind_of
from app.api.without_keys import refuse_without_keys
from app.errors import Forbidden, LikenessError, RouteNotFound, StoreUnavailable, Unauthenticated
from app.store.actor import acting_as
from app.store.database import now_utc
from app.store.sql.lookups import collection_not_found
from app.telemetry.logs import log
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.access.oidc import OidcTokens

ACCESS = "likeness.access"
WITHOUT_KEY = "caller"  # the actor while no key is needed
# Everything else needs a key, also paths that do not exist.
OPEN = re.compile(r"/|/livez|/readyz|/openapi\.json|/(docs|redoc|static-offline-docs)(/.*)?")
# Attribute of a route's function: the scope that `needs` has given it.
_NEEDED = "needed_scope"
Handler = TypeVar("Handler", bound=Callable[..., Any])


def needs(scope: KeyScope) -> Callable[[Handler], Handler]:
    """Declares the scope that a key must have to call a route: `@needs(Scope.MANAGE)` below the
    decorator of the route."""

    def declare(handler: Handler) -> Handler:
        setattr(handler, _NEEDED, scope)
        return handler

    return declare


def scope_of(route: APIRoute) -> KeyScope:
    """The scope of a route. Raises LookupError if it declares none."""
    scope: KeyScope | None = getattr(route.endpoint, _NEEDED, None)
    if scope is None:
        raise LookupError(f"'{route.name}' has no scope: declare it with @needs(...)")
    return scope


@dataclass(frozen=True, slots=True)
class Access:
    """What a request may do. `key` is None while no key is needed: then it may do everything."""

    key: AccessKey | None = None
    limiter: Limiter | None = None
    probing: ProbingMonitor | None = None

    async def count_photos(self, count: int) -> None:
        """Count the photos of a call. Raises RateLimited or QuotaExceeded if its key may not send
        so many."""
        if self.key is not None and self.limiter is not None:
            await self.limiter.photos(self.key, count)

    def count_misses(self, count: int) -> None:
        """Count faces that were unknown, or claims that were wrong."""
        if self.key is not None and self.probing is not None:
            self.probing.count(self.key, count)

    def sees(self, collection: str) -> bool:
        """Whether a collection of that name may exist for this request."""
        return self.key is None or self.key.sees(collection)

    def require_collection(self, collection: str) -> None:
        """Raise CollectionNotFound, as if it did not exist, if the key is not for it."""
        if not self.sees(collection):
            raise collection_not_found(collection)

    @property
    def collections(self) -> frozenset[str] | None:
        """The only collections there are for this request; None: all."""
        return None if self.key is None else self.key.collections


def access_of(request: Request) -> Access:
    """What this request may do."""
    found: Access = request.scope[ACCESS]
    return found


class AccessControl:
    """Pure ASGI: admits requests whose key allows them, refuses all others."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        registry: AccessRegistry,
        limiter: Limiter,
        probing: ProbingMonitor,
        refused: RefusedCalls,
        oidc: "OidcTokens | None",
        metrics: Metrics,
        routers: Sequence[APIRouter],
        origins: Sequence[str] = (),
    ) -> None:
        """`origins`: whose pages may call. Raises LookupError if an operation has no scope."""
        self._app = app
        self._registry = registry
        self._limiter = limiter
        self._probing = probing
        self._refused = refused
        self._oidc = oidc
        self._metrics = metrics
        self._origins = origins
        self._routes = list(protected_routes(routers))
        # By method and number of slashes: a parameter of a path holds none.
        self._by_form: dict[tuple[str, int], list[tuple[APIRoute, KeyScope]]] = defaultdict(list)
        for route in self._routes:
            scope = scope_of(route)
            for method in route.methods or ():
                self._by_form[method, route.path.count("/")].append((route, scope))
        # Of paths without parameters, among them the busiest ones.
        self._fixed = {
            (method, route.path): self._find_operation(method, route.path)
            for route in self._routes
            for method in route.methods or ()
            if not route.param_convertors
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        operation = self._fixed.get((method, path))
        if operation is None:
            if OPEN.fullmatch(path):
                await self._app(scope, receive, send)
                return
            operation = self._find_operation(method, path)
        scope[ROUTE] = None if operation is None else operation.route
        try:
            access = await self._access(scope, operation)
        except LikenessError as error:
            self._observed(scope, operation, None).refused(error)
            await self._refuse(error)(scope, receive, send)
            return
        scope[ACCESS] = access
        if access.key is None:
            with acting_as(WITHOUT_KEY):
                call = self._observed(scope, operation, access)
                await call.run(self._app)(scope, receive, send)
            return
        send_limits = self._with_limits(access.key, send)
        call = self._observed(scope, operation, access)
        with ExitStack() as running:
            try:
                # First, so that calls which the key is not for count too.
                running.enter_context(self._limiter.request(access.key))
                if operation is not None:
                    _require(access, operation)
                elif not self._is_declared(scope["path"]):
                    raise RouteNotFound(f"There is no call {scope['path']}; /docs lists all calls.")
            except LikenessError as error:
                call.refused(error)
                await self._refuse(error)(scope, receive, send_limits)
                return
            running.enter_context(acting_as(access.key.actor))
            app = call.run(self._app)
            await _Watched(self._usable, access.key, scope).run(app, receive, send_limits)

    def _observed(
        self, scope: Scope, operation: Operation | None, access: Access | None
    ) -> ObservedCall:
        """The call, for the audit log; `access` is None if it has no valid key."""
        actor = ANONYMOUS
        if access is not None:
            actor = WITHOUT_KEY if access.key is None else access.key.actor
        limited = access is not None and access.collections is not None
        return ObservedCall(self._refused, actor, scope["method"], operation, limited)

    def _usable(self, key: AccessKey) -> bool:
        """Whether a key that was accepted before is still usable."""
        return key.usable(now_utc()) if key.key_id == KEY_ID else self._registry.usable(key)

    def _with_limits(self, key: AccessKey, send: Send) -> Send:
        """`send`, which adds to the answer what the key's limits are and what is left."""
        if not key.limits:
            return send

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._limiter.headers(key))
            await send(message)

        return sending

    async def _read_again(self) -> None:
        """Wait, for a limited time, until the keys were read again. Raises StoreUnavailable."""
        renewal = asyncio.wrap_future(self._registry.renewal())
        read = False
        with suppress(TimeoutError):
            # Others wait for the same reading: it must not be cancelled with this request.
            read = await asyncio.wait_for(asyncio.shield(renewal), LEASE_S)
        if not read:
            raise StoreUnavailable(
                "The access keys cannot be read from the database. Try again in a moment.",
                {"retry_after": 1},
            )

    async def _access(self, scope: Scope, operation: Operation | None) -> Access:
        """Whose request it is. Raises Unauthenticated, Forbidden or StoreUnavailable."""
        if stale := not self._registry.fresh:
            await self._read_again()
        if not self._registry.enabled and self._oidc is None:
            needed = None if operation is None else operation.scope
            refuse_without_keys(needed, scope["headers"], self._origins)
            return Access()
        return Access(await self._key(scope, stale), self._limiter, self._probing)

    async def _key(self, scope: Scope, just_read: bool) -> AccessKey:
        token = _token(scope["headers"])
        if token is None:
            raise Unauthenticated(
                "This service needs an access key: send it as 'Authorization: Bearer lk_…' or as "
                "'X-Api-Key: lk_…'. `likeness keys create` makes one."
            )
        if self._oidc is not None and self._oidc.has_form(token):
            return await self._oidc.key_of(token)
        if not just_read and self._registry.may_be_new(token):
            await self._read_again()
        key = self._registry.key_of(token)
        if key is None:
            raise Unauthenticated(
                "The access key is unknown, revoked or expired. Ask the operator for another one."
            )
        return key

    def _find_operation(self, method: str, path: str) -> Operation | None:
        """What is called; None if no declared path has this method."""
        for route, needed in self._by_form.get((method, path.count("/")), ()):
            if found := route.path_regex.match(path):
                collection = found.groupdict().get("collection")
                return Operation(needed, collection, route.path)
        return None

    def _is_declared(self, path: str) -> bool:
        """Whether a path is one of the routers', with any method: no other may be called with just
        any key. With a slash at its end it is only redirected."""
        return any(route.path_regex.match(path.rstrip("/")) for route in self._routes)

    def _refuse(self, error: LikenessError) -> Any:
        self._metrics.observe_problem(error.code)
        log(logging.WARNING, "request refused", code=error.code)
        answer = problem(error)
        if isinstance(error, Unauthenticated):
            answer.headers["WWW-Authenticate"] = 'Bearer realm="likeness"'
        return answer


class _Watched:
    """A request that is cut off if its key is revoked or expires before its body is complete, or
    while its answer is streamed. A call whose body is complete is finished and answered."""

    def __init__(self, usable: Callable[[AccessKey], bool], key: AccessKey, scope: Scope) -> None:
        self._usable = usable
        self._key = key
        self._scope = scope

    async def run(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not self._usable(self._key):
                self._cut()
                return {"type": "http.disconnect"}
            return message

        async def watched_send(message: Message) -> None:
            if not self._usable(self._key):
                self._cut()
            await send(message)

        is_stream = kind_of(self._scope["method"], self._scope["path"]) is Kind.STREAM
        await app(self._scope, watched_receive, watched_send if is_stream else send)

    def _cut(self) -> None:
        abort = self._scope.get(ABORT)
        if abort is not None:
            abort()


def _require(access: Access, operation: Operation) -> None:
    assert access.key is not None, "keys are needed"
    if operation.scope not in access.key.scopes:
        has = ", ".join(sorted(access.key.scopes)) or "none"
        raise Forbidden(
            f"This call needs the scope '{operation.scope}'; the access key '{access.key.name}' "
            f"has {has}."
        )
    if operation.scope in WHOLE_SERVICE and access.key.collections is not None:
        raise Forbidden(
            f"The access key '{access.key.name}' is limited to collections; this call is about the "
            "whole service."
        )
    if operation.collection is not None:
        access.require_collection(operation.collection)


def _token(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The token of a request. Raises Unauthenticated if two different ones were sent."""
    authorizations = [value for name, value in headers if name == b"authorization"]
    sent = {value.strip() for name, value in headers if name == b"x-api-key"}
    for value in authorizations:
        kind, _, credentials = value.partition(b" ")
        if kind.lower() == b"bearer":
            sent.add(credentials.strip())
    if len(authorizations) > 1 or len(sent) > 1:
        raise Unauthenticated("Several access keys were sent; send one.")
    return next(iter(sent)).decode("latin-1") if sent else None


def protected_routes(routers: Sequence[APIRouter]) -> Iterator[APIRoute]:
    """The routes that need a key."""
    for router in routers:
        for route in router.routes:
            if isinstance(route, APIRoute) and not OPEN.fullmatch(route.path):
                yield route
