"""Limits of concurrent transfers by kind of request, so that one kind cannot block another."""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from app.api.transfers import Transfers
from app.errors import NotReady
from app.inference.scheduler import Scheduler
from app.settings import Settings

PHOTO_CALLS = re.compile(r"/v1/(detect|embed|enroll|verify|identify)")
IMPORTS = re.compile(r"/v1/collections/[^/]+/imports")
STREAMS = re.compile(r"/v1/collections/[^/]+/imports/[^/]+/(events|report)")
DELETE_SEVERAL = re.compile(r"/v1/collections/[^/]+/persons/delete")
HYGIENE = re.compile(r"/v1/collections/[^/]+/hygiene")

MAX_RECEIVING = 64
MAX_SENDING = 64
MAX_UPLOADS = 8
MAX_STREAMS = 32
MAX_DELETIONS = 32


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
    if method == "DELETE" or (method == "POST" and DELETE_SEVERAL.fullmatch(path)):
        return Kind.DELETION
    if method == "POST" and IMPORTS.fullmatch(path):
        return Kind.UPLOAD
    return Kind.STREAM if STREAMS.fullmatch(path) else Kind.CALL


@dataclass(frozen=True, slots=True)
class Places:
    """The transfers of a service by kind."""

    receiving: Transfers
    sending: Transfers
    uploads: Transfers
    streams: Transfers
    deletions: Transfers

    @classmethod
    def of(cls, settings: Settings, scheduler: Scheduler) -> "Places":
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

    def end_long_ones(self) -> None:
        """End uploads and streams, which can last long, because the service stops."""
        why = NotReady("The service is stopping; send this again in a moment.", {"retry_after": 5})
        self.uploads.end_all(why)
        self.streams.end_all(why)


def body_limit(scope: Any, settings: Settings) -> int:
    """The limit in bytes for the body of a call."""
    photos = PHOTO_CALLS.fullmatch(scope["path"])
    return settings.max_request_bytes if photos else settings.max_json_bytes


def work_limit(scope: Any, settings: Settings) -> float:
    """The limit in seconds for processing a call; examining a collection takes the longest."""
    long = HYGIENE.fullmatch(scope["path"])
    return settings.import_timeout if long else settings.request_timeout
