"""A call as the audit log sees it, if it is refused or fails."""

import re
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.keys import Scope as KeyScope
from app.access.refused import Outcome, RefusedCall, RefusedCalls
from app.api.error_handlers import CODE
from app.errors import CollectionNotFound, Forbidden, LikenessError, RateLimited, Unauthenticated
from app.store.identifiers import COLLECTION_PATTERN
from app.telemetry.logs import client_address, request_id

ANONYMOUS = "anonymous"  # the actor of calls without a valid key
CHANGING = (KeyScope.ENROLL, KeyScope.MANAGE, KeyScope.ADMIN)  # scopes of calls, except GET
REFUSED = 400  # statuses from here on
_COLLECTION = re.compile(COLLECTION_PATTERN)


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

    def _outcome(self, code: str, status: int) -> Outcome | None:
        """What an answer is for the audit log; None if it is not written there."""
        hidden = self.limited and code == CollectionNotFound.code
        if hidden or status in (Unauthenticated.status, Forbidden.status):
            return Outcome.DENIED
        if status == RateLimited.status:
            return Outcome.LIMITED
        return Outcome.FAILED if self._changes else None
