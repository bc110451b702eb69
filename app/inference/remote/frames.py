"""The messages of a slot's socket, which keeps their boundaries.

The client sends one socket of a pair through a socket that all processes of the service were
given; the server answers there with its `Greeting` (JSON), and the client with the descriptor of
the slot's memory. After that every request is one message, and so is its reply, which has the
number of the request: an answer is never taken for that to another one.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

OPEN = b"o"  # with a socket
MEMORY = b"m"  # with the descriptor of memory
GREETING_BYTES = 128 * 1024
FRAME_BYTES = 2048
_REQUEST = struct.Struct("<HHI")
_REPLY = struct.Struct("<BI")
NUMBERS = 1 << 32
_TEXT_BYTES = 1000


class RequestStatus(IntEnum):
    """How a request ended. FAILED: the network does not take these images; DIED: its thread did."""

    DONE = 0
    FAILED = 1
    DIED = 2


@dataclass(frozen=True, slots=True)
class Request:
    """Run a network, by its place in the greeting, with so many images of the slot. `number`: of
    the requests of this slot, below `NUMBERS`."""

    network: int
    count: int
    number: int

    def encoded(self) -> bytes:
        """As it is sent."""
        return _REQUEST.pack(self.network, self.count, self.number)


@dataclass(frozen=True, slots=True)
class Reply:
    """To the request of that number: the answers are in the slot, or what went wrong is in the
    text."""

    status: RequestStatus
    number: int
    text: str = ""

    def encoded(self) -> bytes:
        """As it is sent."""
        text = self.text.encode(errors="replace")[:_TEXT_BYTES]
        return _REPLY.pack(self.status, self.number) + text


def request_of(message: bytes) -> Request:
    """Raises ValueError."""
    try:
        return Request(*_REQUEST.unpack(message))
    except struct.error as error:
        raise ValueError(f"a request of {len(message)} bytes") from error


def reply_of(message: bytes) -> Reply:
    """Raises ValueError."""
    try:
        status, number = _REPLY.unpack_from(message)
    except struct.error as error:
        raise ValueError(f"a reply of {len(message)} bytes") from error
    return Reply(RequestStatus(status), number, message[_REPLY.size :].decode(errors="replace"))
