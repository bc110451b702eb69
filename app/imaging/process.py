"""The decoder process: it receives photos over a socket and sends pixels back, and has access to
nothing else.

It is started as `python -m app.imaging.process DESCRIPTOR BYTES`, may take BYTES of address space,
and ends when the other end closes, or when a photo takes too long, even if the service that started
it is gone.
"""

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import ImageError
from app.imaging.boxed import decode_boxed
from app.imaging.decoding import decode_here
from app.imaging.formats import Header
from app.imaging.limits import BYTES_PER_PIXEL, ISOLATED_FORMATS, damaged, inspect
from app.imaging.wire import DecoderChannel, DecodeRequest
from app.types import DecodedImage

# What the service waits longer than the alarm here, so that only it ends a process as a rule.
GRACE_SECONDS = 5.0
_MAX_DESCRIPTORS = 16
# Address space for one photo beside its pixels: buffers, stacks of threads, copies of the file.
_BUFFER_BYTES = 64 * 1024 * 1024
_STACK_BYTES = 16 * 1024 * 1024
_COPIES = 4


def _limit_self(most: int) -> None:
    for what, limit in (
        (resource.RLIMIT_AS, most),
        (resource.RLIMIT_NOFILE, _MAX_DESCRIPTORS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (allowed, allowed))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _decode(request: DecodeRequest) -> DecodedImage:
    header = inspect(request.data, request.limits)
    with _memory_of(header, len(request.data)):
        if header.format in ISOLATED_FORMATS:
            return decode_boxed(header, request.data, request.limits)
        return decode_here(header, request.data, request.limits, request.enough)


@contextmanager
def _memory_of(header: Header, size: int) -> Iterator[None]:
    """Limit the address space to what a photo of that header takes: its coded data may be of a
    larger picture, which a decoder decodes before it compares, or scales it down."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux
        yield
        return
    stacks = _STACK_BYTES * (os.cpu_count() or 1)
    most = used + _BUFFER_BYTES + stacks + _COPIES * size + BYTES_PER_PIXEL * header.pixels
    resource.setrlimit(resource.RLIMIT_AS, (min(most, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _answer(connection: DecoderChannel, request: DecodeRequest) -> None:
    deadline = time.monotonic() + request.limits.decode_seconds + GRACE_SECONDS
    # Its default action ends the process, within a decoder too.
    signal.setitimer(signal.ITIMER_REAL, request.limits.decode_seconds + GRACE_SECONDS)
    try:
        photo = _decode(request)
    except ImageError as error:
        connection.send_refusal(error, deadline)
    except MemoryError:  # the limit of this process is what the photo's header announces
        connection.send_refusal(damaged(), deadline)
    else:
        connection.send_photo(photo, deadline)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main(descriptor: int, most: int) -> None:
    """Decode photos until nobody sends one."""
    _limit_self(most)
    connection = DecoderChannel(socket.socket(fileno=descriptor))
    while True:
        try:
            request = connection.receive_request()
        except EOFError:
            return
        _answer(connection, request)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
