"""Limits the bodies and answers that are being transferred at a time, by kind of request, so that
one kind cannot block another.

A client that sends or reads slowly occupies memory and one of a limited number of transfers. When
the limit is reached, the slowest transfer is ended, so slow clients cannot keep others out.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from app.errors import LikenessError, NotReady, Overloaded, RequestTimeout
from app.inference.scheduler import Scheduler
from app.settings import Settings

PHOTO_CALLS = frozenset(
    f"/v1/{name}" for name in ("detect", "embed", "enroll", "verify", "identify")
)
IMPORTS = re.compile(r"/v1/collections/[^/]+/imports")
STREAMS = re.compile(r"/v1/collections/[^/]+/imports/[^/]+/(events|report)")
DELETE_SEVERAL = re.compile(r"/v1/collections/[^/]+/persons/delete")
HYGIENE = re.compile(r"/v1/collections/[^/]+/hygiene")

MAX_RECEIVING = 64
MAX_SENDING = 64
MAX_UPLOADS = 8
MAX_STREAMS = 32
MAX_DELETIONS = 32

# A transfer is not ended before it has lasted this long.
GRACE_S = 2.0
RETRY_AFTER_S = 1


@dataclass(eq=False, slots=True)
class Transfer:
    """One transfer: `moved` bytes so far, and `held` bytes in memory. `arrived`: the whole body is
    here, so that it is not ended for being slow."""

    task: "asyncio.Task[object]"
    since: float = field(default_factory=time.monotonic)
    moved: int = 0
    held: int = 0
    arrived: bool = False
    ended_by: LikenessError | None = None

    def rate(self, now: float) -> float:
        """Average bytes per second so far."""
        return self.moved / max(now - self.since, 1e-3)

    def end(self, why: LikenessError) -> None:
        """Cancel the request, which is then answered with `why`."""
        if self.ended_by is None:
            self.ended_by = why
            self.task.cancel()


class Transfers:
    """The transfers of one kind, at most `most` at a time. Together with the bytes that `others`
    returns they may hold `most_bytes` in memory."""

    def __init__(
        self,
        name: str,
        most: int,
        most_bytes: int = 0,
        others: Callable[[], int] = lambda: 0,
        *,
        may_be_ended: bool = True,
    ) -> None:
        self.name = name
        self._may_be_ended = may_be_ended
        self._most = most
        self._most_bytes = most_bytes
        self._others = others
        self._open: set[Transfer] = set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def held(self) -> int:
        """Bytes in memory for all of them."""
        return sum(one.held for one in self._open)

    @contextmanager
    def open(self) -> Iterator[Transfer]:
        """Begin a transfer, if necessary by ending the slowest. Raises Overloaded if that is too
        young to be ended."""
        if len(self._open) >= self._most:
            if not (others := self._may_end()):
                raise self._full(f"{len(self._open)} {self.name} are already in progress")
            self._end(others[0], "Too many transfers were open")
        task = asyncio.current_task()
        assert task is not None, "requests are tasks"
        transfer = Transfer(task)
        self._open.add(transfer)
        try:
            yield transfer
        finally:
            self._open.discard(transfer)

    def hold(self, transfer: Transfer, count: int) -> None:
        """Count `count` more bytes in memory; a single transfer may have any number. Raises
        Overloaded if they are too many, and ending the slower transfers would not make enough
        room; then none is ended."""
        transfer.held += count
        together = self.held + self._others()
        if together <= self._most_bytes:  # nearly always, and this is for each piece of a body
            return
        to_end = []
        for other in self._may_end(but=transfer):
            if together <= self._most_bytes:
                break
            if other.held:
                to_end.append(other)
                together -= other.held
        if together > self._most_bytes and together != transfer.held:
            raise self._full("The memory for requests is in use")
        for other in to_end:
            self._end(other, "The memory for requests was in use")

    def end_all(self, why: LikenessError) -> None:
        """End every one."""
        for transfer in list(self._open):
            transfer.end(why)

    def _may_end(self, but: Transfer | None = None) -> list[Transfer]:
        """Those that may be ended for another, the slowest first; for `but`, if that is not young
        itself, only those that are not faster."""
        if not self._may_be_ended:
            return []
        now = time.monotonic()
        moving = [one for one in self._open if one is not but and not one.arrived]
        old = [one for one in moving if now - one.since > GRACE_S]
        if but is not None and now - but.since > GRACE_S:
            old = [one for one in old if one.rate(now) <= but.rate(now)]
        return sorted(old, key=lambda one: one.rate(now))

    def _end(self, slow: Transfer, why: str) -> None:
        self._open.discard(slow)
        slow.end(
            RequestTimeout(
                f"{why}, and this transfer was one of the slowest; try again, over a faster "
                "connection if you can.",
                {"retry_after": RETRY_AFTER_S},
            )
        )

    def _full(self, why: str) -> Overloaded:
        return Overloaded(f"{why}; try again in a moment.", {"retry_after": RETRY_AFTER_S})


class Kind(Enum):
    """`CALL`: the body is read completely, then the call is processed, then the answer is sent.
    `DELETION`: the same, but counted separately. `UPLOAD`: the body is
    written to disk as it arrives. `STREAM`: the answer is made while it is sent."""

    CALL = auto()
    DELETION = auto()
    UPLOAD = auto()
    STREAM = auto()


def kind_of(method: str, path: str) -> Kind:
    """The kind of a request."""
    if method == "POST" and path in PHOTO_CALLS:
        return Kind.CALL
    if method == "DELETE" or (method == "POST" and DELETE_SEVERAL.fullmatch(path)):
        return Kind.DELETION
    if method == "POST" and IMPORTS.fullmatch(path):
        return Kind.UPLOAD
    return Kind.STREAM if STREAMS.fullmatch(path) else Kind.CALL


@dataclass(frozen=True, slots=True)
class TransfersByKind:
    """The transfers of a service by kind."""

    receiving: Transfers
    sending: Transfers
    uploads: Transfers
    streams: Transfers
    deletions: Transfers

    @classmethod
    def of(cls, settings: Settings, scheduler: Scheduler) -> "TransfersByKind":
        """With the limits from the settings; bodies, answers and the requests that are being
        processed share `max_pending_bytes`."""
        most = settings.max_pending_bytes
        sending = Transfers("answers", MAX_SENDING, most)
        receiving = Transfers(
            "bodies", MAX_RECEIVING, most, lambda: scheduler.pending_bytes + sending.held
        )
        return cls(
            receiving,
            sending,
            Transfers("uploads", MAX_UPLOADS),
            Transfers("event streams and reports", MAX_STREAMS),
            Transfers("deletions", MAX_DELETIONS, may_be_ended=False),
        )

    def all(self) -> tuple[Transfers, ...]:
        """The transfers of every kind."""
        return (self.receiving, self.sending, self.uploads, self.streams, self.deletions)

    def end_long_ones(self, *, stopping: bool) -> None:
        """End uploads and streams, which can last long, because the service stops, or because
        another process takes the place of this one."""
        what = "The service is stopping" if stopping else "This process is being replaced"
        why = NotReady(
            f"{what}; send this again in a moment.", {"retry_after": 5 if stopping else 1}
        )
        self.uploads.end_all(why)
        self.streams.end_all(why)


def body_limit(scope: Any, settings: Settings) -> int:
    """The limit in bytes for the body of a call."""
    photos = scope["path"] in PHOTO_CALLS
    return settings.max_request_bytes if photos else settings.max_json_bytes


def work_limit(scope: Any, settings: Settings) -> float:
    """The limit in seconds for processing a call; examining a collection takes the longest."""
    long = scope["path"] not in PHOTO_CALLS and HYGIENE.fullmatch(scope["path"])
    return settings.import_timeout if long else settings.request_timeout
