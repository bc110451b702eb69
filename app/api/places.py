"""Places for requests by kind, so that one kind does not keep out another."""

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
    """`CALL`: its body is read whole, then it has a place to work, then its answer is sent.
    `DELETION`: the same, with a place that no other kind can take. `UPLOAD`: its body goes to disk
    as it comes. `STREAM`: its answer is made while it is sent."""

    CALL = auto()
    DELETION = auto()
    UPLOAD = auto()
    STREAM = auto()


def kind_of(method: str, path: str) -> Kind:
    """What kind of request that is."""
    if method == "DELETE" or (method == "POST" and DELETE_SEVERAL.fullmatch(path)):
        return Kind.DELETION
    if method == "POST" and IMPORTS.fullmatch(path):
        return Kind.UPLOAD
    return Kind.STREAM if STREAMS.fullmatch(path) else Kind.CALL


@dataclass(frozen=True, slots=True)
class Places:
    """All of a service. `stopping` is set once it has been told to end."""

    receiving: Transfers
    sending: Transfers
    uploads: Transfers
    streams: Transfers
    deletions: Transfers

    @classmethod
    def of(cls, settings: Settings, scheduler: Scheduler) -> "Places":
        """Those of the settings; bodies and answers share `max_pending_bytes` with requests at
        work."""
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
            Transfers("deletions", MAX_DELETIONS),
        )

    def all(self) -> tuple[Transfers, ...]:
        """Of every kind."""
        return (self.receiving, self.sending, self.uploads, self.streams, self.deletions)

    def end_long_ones(self) -> None:
        """End uploads and streams, which would outlast every patience: the service stops."""
        why = NotReady("The service is stopping; send this again in a moment.", {"retry_after": 5})
        self.uploads.end_all(why)
        self.streams.end_all(why)


def body_limit(scope: Any, settings: Settings) -> int:
    """Bytes that the body of a call may have."""
    photos = PHOTO_CALLS.fullmatch(scope["path"])
    return settings.max_request_bytes if photos else settings.max_json_bytes


def work_limit(scope: Any, settings: Settings) -> float:
    """Seconds that a call may be at work: a collection is examined for as long as it is large."""
    long = HYGIENE.fullmatch(scope["path"])
    return settings.import_timeout if long else settings.request_timeout
