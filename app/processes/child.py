"""A child process as its parent sees it."""

import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from app.processes.generations import Generation, Role
from app.processes.messages import CLOSED, CONNECTION, LEAVE, PIECE, ControlLost, Lines
from app.processes.starting import START_S, Plan

# A child that ends sooner than this is not started again at once.
SHORT_LIFE_S = 10.0


class State(Enum):
    """STARTING: loads its networks. SERVING: gets connections. LEAVING: finishes those it has."""

    STARTING = auto()
    SERVING = auto()
    LEAVING = auto()


class Child:
    """One process, started by exec: a fork would lack the threads of its parent."""

    def __init__(
        self, command: Sequence[str], records: int, column: int, role: Role, generation: Generation
    ) -> None:
        """`command` gets more arguments: the descriptors of its sockets and of the shared records,
        its column there, and the descriptor of its end of what connects those that serve with the
        one that runs the networks. Raises OSError."""
        self.column = column
        self.role = role
        self.generation = generation
        openings = generation.end_of(role)
        self.state = State.STARTING
        self.connections = 0
        self.wants_to_leave = False
        self.exposition: str | None = None  # its last known metrics
        self.since = self.heard_at = time.monotonic()  # of the state; of a sign of life
        self.end_at: float | None = None  # when a child that drains must end
        self.channel, theirs = socket.socketpair()
        control, their_control = socket.socketpair()
        self._unsent = bytearray()
        files = (theirs.fileno(), their_control.fileno(), records)
        try:
            self._process = subprocess.Popen(  # noqa: S603 (this interpreter)
                [*command, *map(str, (*files, column, openings))],
                pass_fds=[one for one in (*files, openings) if one >= 0],
                process_group=0,  # the terminal's signals are for the parent
            )
        except BaseException:
            self.channel.close()
            control.close()
            raise
        finally:
            theirs.close()
            their_control.close()
        self.channel.setblocking(False)
        self.lines = Lines(control)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def enter(self, state: State) -> None:
        """Change the state, from now on."""
        self.state, self.since = state, time.monotonic()

    def forgive(self, seconds: float) -> None:
        """Do not count these seconds: nobody asked or listened."""
        now = time.monotonic()
        self.since = min(now, self.since + seconds)
        self.heard_at = min(now, self.heard_at + seconds)
        if self.end_at is not None:
            self.end_at += seconds

    @property
    def has_lived_shortly(self) -> bool:
        """Whether it never came to serve, or only just did."""
        return self.state is State.STARTING or time.monotonic() - self.since < SHORT_LIFE_S

    def is_late(self, plan: Plan, now: float) -> bool:
        """Whether it takes too long to start, to answer or to end."""
        silent = now - self.heard_at > plan.silent_s
        if self.state is State.STARTING:
            return now - self.since > START_S
        if self.state is State.SERVING:
            return silent
        # It is not asked any more; but it may have hung before.
        hung = self.heard_at < self.since - plan.silent_s / 2 and silent
        return hung or now - self.since > plan.drain_s + plan.finish_s

    # --- the channel -------------------------------------------------------------------------

    def take(self, connection: socket.socket) -> bool:
        """Hand over a connection; False if it has no room, or is ending."""
        if self._unsent:
            return False
        try:
            socket.send_fds(self.channel, [CONNECTION], [connection.fileno()])
        except OSError:
            return False  # if it is dead, `ended` says so soon
        self.connections += 1
        connection.close()
        return True

    def order(self, message: bytes) -> None:
        """Send what the child must do; it reads it after the connections handed over so far."""
        self._unsent += message
        self._send()

    def flush(self) -> None:
        """Send what was kept while the buffers of the sockets were full."""
        self._send()
        with suppress(ControlLost):
            self.lines.flush()

    def _send(self) -> None:
        if self._unsent:
            with suppress(OSError):
                sent = self.channel.send(self._unsent)
                del self._unsent[:sent]

    def read_channel(self) -> bool:
        """Count the connections that were closed; False if the channel has ended."""
        try:
            received = self.channel.recv(PIECE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.connections -= received.count(CLOSED)
        self.wants_to_leave |= LEAVE in received
        return bool(received)

    # --- the control socket ------------------------------------------------------------------

    def send_value(self, value: Any) -> None:
        """Send a question or an answer; does nothing if the child has ended."""
        with suppress(ControlLost):
            self.lines.send(value)

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """Close the sockets of a child that has ended."""
        self.channel.close()
        self.lines.socket.close()


def command_of(arguments: str) -> list[str]:
    """How a child is started: this interpreter, without the working folder among the places that
    modules are imported from."""
    return [sys.executable, "-P", "-m", "app.cli.worker", arguments]
