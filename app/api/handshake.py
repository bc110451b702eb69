"""A connection until its TLS handshake is complete; then HTTP begins on it.

The event loop's own TLS servers neither count connections in a handshake nor limit how many
handshakes begin in one round. Here each is in the table of connections from the beginning, and
begins when the client's first message has arrived completely, one in each round: it costs about as
much CPU time as a small request.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from app.api.certificate import ServerCertificate
from app.api.connection import Connection, last_answer
from app.api.connections import Connections, HandshakeStage
from app.api.turns import Turns
from app.errors import InvalidHttp
from app.telemetry.logs import log

# Of a record (RFC 8446, 5.1): its type, two bytes of version, two of length.
RECORD_HEAD_BYTES = 5
MAX_RECORD_BYTES = RECORD_HEAD_BYTES + 16 * 1024
HANDSHAKE = 22
CLIENT_HELLO = 1
MAJOR_VERSION = 3
# No client sends a tenth of it. (The length of a message has three bytes.)
MAX_HELLO_BYTES = 64 * 1024
# TLS buffers this much for a connection that does not read at the moment.
READ_BUFFER_BYTES = 64 * 1024
# How long the event loop may try to end a connection; `Connection.check` ends it much earlier.
SHUTDOWN_S = 600.0
# Made once: an attacker can ask for many.
PLAIN_HTTP = last_answer(InvalidHttp("This port speaks TLS: begin the address with https://."))
# A fatal alert: decode_error (RFC 8446, 6).
NO_HELLO = bytes([21, 3, 3, 0, 2, 2, 50])


class Handshake(asyncio.Protocol):
    """Passes a TCP connection over to a `Connection` once it is encrypted."""

    def __init__(
        self,
        certificate: ServerCertificate,
        table: Connections,
        turns: Turns,
        running: set[Any],
        connection: Callable[[], Connection],
    ) -> None:
        """`running`: connections that the server ends when it stops, by their `shutdown`."""
        self.crowded = False
        self._certificate = certificate
        self._table = table
        self._turns = turns
        self._running = running
        self._connection = connection
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._began_at = time.monotonic()
        self._work: asyncio.Task[None] | None = None
        self._has_turn = False

    # --- called by the event loop -------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._running.add(self)
        self._table.add(self, in_handshake=True)

    def data_received(self, data: bytes) -> None:
        """Before the handshake: the client's first message. After it, until HTTP has begun: what
        was decrypted meanwhile."""
        self._received += data
        if self._work is not None or self._transport.is_closing():
            if not self._has_turn and len(self._received) > MAX_RECORD_BYTES:
                self._transport.pause_reading()
            return
        if self._received[0] != HANDSHAKE:
            self._refuse(PLAIN_HTTP)
        elif not _may_be_hello(self._received):
            self._refuse(NO_HELLO)
        elif _is_complete(self._received):
            self._table.reached(HandshakeStage.WAITING, self)
            self._work = asyncio.get_running_loop().create_task(self._secure())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._work is not None and not self._has_turn:
            self._work.cancel()  # a client that has left takes no turn from others
        self._leave()

    # --- called by the table and the server ---------------------------------------------------

    def check(self, now: float) -> None:
        """Close the connection if the handshake takes longer than the head of a request may."""
        if now - self._began_at > self._table.limits.head_s:
            self.give_up()

    def give_up(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    shutdown = give_up

    # ------------------------------------------------------------------------------------------

    def _refuse(self, answer: bytes) -> None:
        self._transport.write(answer)
        self._transport.close()

    async def _secure(self) -> None:
        """Do the handshake, then begin HTTP."""
        await self._turns.take()
        self._has_turn = True
        self._table.reached(HandshakeStage.BEGUN, self)
        encrypted = None
        try:
            if not self._transport.is_closing():
                encrypted = await self._encrypted()
        except OSError as error:  # ssl.SSLError is one
            log(logging.DEBUG, "a TLS handshake failed", reason=str(error))
        finally:
            self._leave()
        if encrypted is None or encrypted.is_closing():
            self._transport.abort()
            return
        buffered: Any = encrypted  # typeshed does not know that such a transport has this
        buffered.set_read_buffer_limits(READ_BUFFER_BYTES)
        connection = self._connection()
        connection.wire = self._transport
        encrypted.set_protocol(connection)
        connection.connection_made(encrypted)
        if self._received:
            connection.data_received(bytes(self._received))

    async def _encrypted(self) -> asyncio.Transport | None:
        """The connection after the handshake. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._transport.pause_reading()  # until the protocol is replaced
        first, self._received = bytes(self._received), bytearray()
        upgrade = loop.create_task(
            loop.start_tls(
                self._transport,
                self,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=self._table.limits.head_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        )
        await asyncio.sleep(0)  # `upgrade` has replaced the protocol and will begin the handshake
        loop.call_soon(_pass_on, self._transport, first)
        return await upgrade

    def _leave(self) -> None:
        self._running.discard(self)
        self._table.remove(self)


def _may_be_hello(received: bytearray) -> bool:
    """Whether what has arrived of a record can begin a client's first message. That costs much less
    than to begin a handshake which fails."""
    if len(received) < RECORD_HEAD_BYTES:
        return True
    if (
        received[1] != MAJOR_VERSION
        or not RECORD_HEAD_BYTES < _length(received) <= MAX_RECORD_BYTES
    ):
        return False
    message = received[RECORD_HEAD_BYTES : min(_length(received), RECORD_HEAD_BYTES + 4)]
    if message and message[0] != CLIENT_HELLO:
        return False
    return len(message) < 4 or int.from_bytes(message[1:], "big") <= MAX_HELLO_BYTES


def _is_complete(received: bytearray) -> bool:
    """Whether the first record has arrived."""
    return len(received) >= RECORD_HEAD_BYTES and len(received) >= _length(received)


def _length(received: bytearray) -> int:
    """Of the first record, whose head has arrived."""
    return RECORD_HEAD_BYTES + int.from_bytes(received[3:RECORD_HEAD_BYTES], "big")


def _pass_on(transport: asyncio.Transport, data: bytes) -> None:
    """Give a transport's new protocol what the old one has received."""
    if transport.is_closing():
        return
    tls: Any = transport.get_protocol()  # an asyncio.BufferedProtocol
    tls.get_buffer(len(data))[: len(data)] = data
    tls.buffer_updated(len(data))
