"""One HTTP/1.1 connection: uvicorn's protocol with limits on the head and on times, and with
problem documents where uvicorn answers in plain text."""

import asyncio
import re
import time
from collections.abc import Iterable
from typing import Any

import httptools
import orjson
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from app.api.connections import Connections
from app.api.departure import Departure
from app.api.problems import MEDIA_TYPE, problem_members
from app.errors import HeadTooLarge, InvalidHttp, LikenessError, PathTooLong, RequestTimeout

KIB = 1024
MAX_TARGET_BYTES = 8 * KIB
MAX_HEAD_BYTES = 64 * KIB
MAX_FIELDS = 100
# Requests sent before earlier ones are answered; very few clients do that. The heads that arrive
# together are parsed at once, while nothing else is served.
MAX_PIPELINED = 4
# With TLS: how long a client may take to answer the notice of the connection's end.
CLOSE_S = 1.0
# With TLS: after so many bytes from a connection others have a turn.
LARGE_READ_BYTES = 64 * KIB
# A complete address without a path, as it is sent to proxies: `/` is meant (RFC 9112, 3.2.1).
WITHOUT_PATH = re.compile(rb"(https?://[^/?#]+)((?:\?.*)?)", re.IGNORECASE)
# Keys in a request's scope: whether only health is answered; a function that ends the connection;
# whether the request was sent before an earlier one was answered; its client's `Departure`.
CROWDED, ABORT, PIPELINED = "likeness.crowded", "likeness.abort", "likeness.pipelined"
DEPARTURE = "likeness.departure"


class Connection(HttpToolsProtocol):
    """Uvicorn's connection with limits. `table`: all connections of the process."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        table: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.crowded = False
        self.wire: asyncio.Transport | None = None  # with TLS: what the encrypted bytes go through
        self._table = table
        self._refusal: LikenessError | None = None
        self._running: RequestResponseCycle | None = None  # the others are in the pipeline
        self._over = False  # whatever arrives is ignored from now on
        self._in_message = False  # between a head's end and its body's
        self._head_since: float | None = time.monotonic()
        self._linger_since: float | None = None
        self._piece_bytes = self._field_bytes = self._fields = self._body_bytes = 0
        self._unsent, self._sent_at = 0, time.monotonic()
        self._closing_since: float | None = None

    # --- called by the event loop -------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._table.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.remove(self)
        # Uvicorn informs only the last request; those before it would continue to write.
        for cycle in (self._running, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                left: Any = cycle.scope
                left[DEPARTURE].happen()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser: a head in pieces no longer than a head may be."""
        if self.wire is not None and len(data) >= LARGE_READ_BYTES:
            # The event loop would read and decrypt as much 32 times in a row.
            self.wire.pause_reading()
            self.loop.call_soon(self.wire.resume_reading)
        start = 0
        while start < len(data) and not self._over:
            if self._in_message:
                piece = data[start:] if start else data
            else:
                self._head_since = self._head_since or time.monotonic()
                piece = data[start : start + MAX_HEAD_BYTES]
            start += len(piece)
            self._feed(piece)

    def _feed(self, piece: bytes) -> None:
        before = self._body_bytes
        self._piece_bytes += len(piece)
        self._parse(piece)
        # Bytes that belong neither to a complete head nor to a body: one long field, or extensions
        # and trailers of chunks. The parser appends each piece to the previous ones.
        if self._body_bytes != before:
            self._piece_bytes = 0
        elif self._piece_bytes > MAX_HEAD_BYTES and not self._over:
            self._refusal = _head_too_large()
            self.send_400_response("")

    def _parse(self, piece: bytes) -> None:
        """Parse like uvicorn, but ignore an `Upgrade` header, which curl --http2 and Java's client
        send (RFC 9110, 7.8): httptools would stop before the body and read it as the next
        request."""
        self._unset_keepalive_if_required()
        while piece and not self._over:
            try:
                self.parser.feed_data(piece)
                return
            except httptools.HttpParserError:
                self.send_400_response("")
            except httptools.HttpParserUpgrade as offer:
                piece = self._head_without_offer() + piece[offer.args[0] :]

    def _head_without_offer(self) -> bytes:
        """The head without its `Upgrade` header, for a new parser."""
        parser, self.parser = self.parser, httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        version = parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    # --- called by the parser -----------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._field_bytes = self._fields = 0
        self._head_since = self._head_since or time.monotonic()
        self._piece_bytes = max(self._piece_bytes, 1)  # it may begin with the request before

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET_BYTES:
            self._refuse(
                PathTooLong(
                    f"The request's path and query have more than {MAX_TARGET_BYTES:,} bytes; send "
                    "long values in the body."
                )
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._field_bytes += len(name) + len(value) + 4
        if self._fields > MAX_FIELDS or self._field_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._refuse(InvalidHttp("The service is not a proxy; it does not accept CONNECT."))
            return  # it is read again, without the offer
        if len(self.pipeline) >= MAX_PIPELINED:
            # Nobody reads this sentence: amid other answers the connection is closed.
            self._refuse(InvalidHttp("Too many requests were sent before the first answer."))
        if (found := WITHOUT_PATH.fullmatch(self.url)) is not None:
            self.url = b"%b/%b" % found.groups()
        extra: Any = self.scope
        extra.update(
            {
                CROWDED: self._table.is_crowded(self),
                ABORT: self.transport.abort,
                PIPELINED: not self._answered(),
                DEPARTURE: Departure(self.flow.resume_reading),
            }
        )
        super().on_headers_complete()  # raises for an invalid address
        self._in_message, self._head_since = True, None
        self._piece_bytes = 0
        self._table.busy(self)
        if self._table.draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_message, self._linger_since = False, None
        self._piece_bytes = 0
        super().on_message_complete()
        if self._answered() and not self.transport.is_closing():
            # Answered before its body arrived, which has ended the time between two requests.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._answered():
            return
        self._table.idle(self)
        if self._head_since is not None:  # of the next request; it had no time of its own yet
            self._head_since = time.monotonic()
        if self._in_message:
            # Answered before the body arrived: continue reading for a while, or the client gets a
            # reset connection instead of the answer.
            self._linger_since = time.monotonic()

    def _answered(self) -> bool:
        """Whether every request so far has been answered."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def _refuse(self, error: LikenessError) -> None:
        """Stop the parser; `send_400_response` follows."""
        self._refusal = error
        raise error

    # --- times --------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Close the connection if one of its time limits is over."""
        limits = self._table.limits
        unsent = self._unsent_bytes()
        if unsent == 0 or unsent < self._unsent:
            self._sent_at = now
        self._unsent = unsent
        if now - self._sent_at > limits.write_s:
            self.transport.abort()  # close() would wait until everything is sent
        elif self._is_left_open(now, unsent) or self._lingers_too_long(now):
            self.transport.abort()
        elif self._head_is_late(now):
            self._end_late_head()

    def _unsent_bytes(self) -> int:
        below = 0 if self.wire is None else self.wire.get_write_buffer_size()
        return self.transport.get_write_buffer_size() + below

    def _is_left_open(self, now: float, unsent: int) -> bool:
        """Whether a client does not close its side of a TLS connection, which has sent it
        everything and the notice of its end."""
        if self.wire is None or unsent or not self.transport.is_closing():
            return False
        self._closing_since = self._closing_since or now
        return now - self._closing_since > CLOSE_S

    def _lingers_too_long(self, now: float) -> bool:
        since = self._linger_since
        return since is not None and now - since > self._table.limits.linger_s

    def _head_is_late(self, now: float) -> bool:
        """Not while earlier requests are being answered: the server may have paused reading."""
        since = self._head_since
        return since is not None and self._answered() and now - since > self._table.limits.head_s

    def _end_late_head(self) -> None:
        if not self._piece_bytes:  # nothing was sent: a browser opened it in advance
            self.transport.close()
            return
        limit = self._table.limits.head_s
        self._refusal = RequestTimeout(
            f"The head of the request was not complete within {limit:g} s; send it faster."
        )
        self.send_400_response("")

    def give_up(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    # --- answers of the server itself ---------------------------------------------------------

    def _can_answer_alone(self) -> bool:
        """Whether no answer is under way or waits, but that of a request whose body is damaged,
        which then sends none."""
        if self._answered():
            return True
        ours = self._in_message and self._running is self.cycle
        if not ours or self.cycle.response_started:
            return False
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return True

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own sentence
        """Refuse an invalid or too large request with a problem document."""
        error = self._refusal or InvalidHttp(
            "The bytes that were sent are not an HTTP/1.1 request; check the client or the proxy."
        )
        self._over, self._head_since = True, None
        if self.transport.is_closing() or not self._can_answer_alone():
            self.transport.abort()  # amid another answer it would be read as its part
            return
        self._table.observe_problem(error.code)
        self.transport.write(last_answer(error, self.server_state.default_headers))
        self._linger_since = time.monotonic()
        self._table.idle(self)


def last_answer(error: LikenessError, fields: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A problem document with its head, after which the connection is closed."""
    body = orjson.dumps(problem_members(error))
    head = [
        STATUS_LINE[error.status],
        *(b"%b: %b\r\n" % field for field in fields),
        b"content-type: %b\r\n" % MEDIA_TYPE.encode(),
        b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body),
    ]
    return b"".join([*head, body])


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(
        f"The head of the request has more than {MAX_HEAD_BYTES:,} bytes or {MAX_FIELDS} fields; "
        "send fewer or shorter ones."
    )
