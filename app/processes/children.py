"""The children of a parent: one of them, all of them, and the questions that every one must answer,
because a client's question is about the whole service and not one process."""

import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from app.processes.generations import Generation, Role
from app.processes.messages import CLOSED, CONNECTION, LEAVE, PIECE, ControlLost, Lines
from app.processes.shared_records import COLUMNS, SharedRecords, shared_file
from app.processes.starting import START_S, Plan

# A child that ends sooner than this is not started again at once.
SHORT_LIFE_S = 10.0
# A manager of services may send its signal to all processes at once: one that asks to leave is
# replaced only after a time in which the parent would have seen its own signal.
BEFORE_LEAVING_S = 1.0


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
        self.leave_at: float | None = None  # when it is replaced, because it was asked to end
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
        if LEAVE in received and self.leave_at is None:
            self.leave_at = time.monotonic() + BEFORE_LEAVING_S
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
    return [sys.executable, "-P", "-m", "app.cli.child", arguments]


class Children:
    """Those that run, or have ended and are not removed yet. Each has a column of the records that
    all share, and two sockets that are waited for."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        on_channel: Callable[[Child], None],
        on_control: Callable[[Child], None],
    ) -> None:
        """The functions are called when a socket of a child can be read."""
        self._selector = selector
        self._on_channel, self._on_control = on_channel, on_control
        self._records_file = shared_file()
        self._records = SharedRecords(self._records_file)
        self._all: list[Child] = []

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._all))

    def __len__(self) -> int:
        return len(self._all)

    def within(self, state: State, *roles: Role) -> list[Child]:
        """Those in a state, of these roles; without any, those that serve."""
        wanted = roles or (Role.SERVING,)
        return [one for one in self._all if one.state is state and one.role in wanted]

    def of(self, role: Role) -> list[Child]:
        """Those of a role."""
        return [one for one in self._all if one.role is role]

    def start(self, command: Sequence[str], role: Role, generation: Generation) -> None:
        """Start one more. Raises OSError."""
        taken = {one.column for one in self._all}
        column = next(column for column in range(COLUMNS) if column not in taken)
        child = Child(command, self._records_file, column, role, generation)
        self._all.append(child)
        for one, work in (
            (child.channel, self._on_channel),
            (child.lines.socket, self._on_control),
        ):
            self._selector.register(
                one, selectors.EVENT_READ, lambda _, on_read=work: on_read(child)
            )

    def forget_socket(self, child: Child, *, control: bool) -> None:
        """Wait for it no longer: it has ended."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(child.lines.socket if control else child.channel)

    def remove(self, child: Child) -> list[Any]:
        """Remove one that has ended; returns the values that it has left."""
        self._all.remove(child)
        for control in (True, False):
            self.forget_socket(child, control=control)
        values: list[Any] = []
        with suppress(ControlLost):
            values = child.lines.receive()
        child.close()
        self._records.clear(child.column)
        return values

    def by_load(self, lately: float) -> list[Child]:
        """Those that serve, the one with the fewest connections first; behind them those that have
        not been heard of since `lately`, which may hang."""
        return sorted(
            self.within(State.SERVING), key=lambda one: (one.heard_at < lately, one.connections)
        )

    def reap_others(self) -> None:
        """Record the ends of processes that others started and left: the first process of a
        container inherits them. The ends of children are left to `Child`."""
        known = {one.pid for one in self._all}
        with suppress(ChildProcessError):
            while True:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid in known:
                    return
                os.waitpid(ended.si_pid, 0)


# How long the answers are waited for, and how long they are good for other clients too.
WAIT_S = 2.0
FRESH_S = 0.2

Asker = tuple[Child, int]  # and the number of its question
Conclude = Callable[[dict[int, Any], int], Any]


class GatheredAnswers:
    """The answers to questions of one kind. Clients that ask meanwhile share them."""

    def __init__(self, kind: str, conclude: Conclude) -> None:
        """`conclude` makes one answer of those by process id, and of how many are missing."""
        self._kind = kind
        self._conclude = conclude
        self._askers: list[Asker] = []
        self._answers: dict[int, Any] = {}
        self._awaited: dict[int, Child] = {}
        self._deadline = 0.0
        self._number = 0
        self._result: Any = None
        self._fresh_until = 0.0

    def ask(self, asker: Asker, children: Iterable[Child]) -> None:
        """Ask all children, unless that is being done or was done just now."""
        if not self._askers and time.monotonic() < self._fresh_until:
            _reply(asker, self._result)
            return
        self._askers.append(asker)
        if len(self._askers) > 1:
            return
        self._number += 1
        self._deadline = time.monotonic() + WAIT_S
        self._answers, self._awaited = {}, {one.pid: one for one in children}
        for child in self._awaited.values():
            child.send_value({"want": self._kind, "number": self._number})
        self.tick()

    def answer(self, child: Child, number: int, value: Any) -> None:
        """Note a child's answer."""
        if self._askers and number == self._number and child.pid in self._awaited:
            self._answers[child.pid] = value
            del self._awaited[child.pid]
            self.tick()

    def forget(self, child: Child) -> None:
        """Wait no longer for the answer of a child that has ended, nor reply to it."""
        self._awaited.pop(child.pid, None)
        self._askers = [one for one in self._askers if one[0] is not child]
        self.tick()

    def tick(self) -> None:
        """Reply, if every answer is there or the time is over."""
        if not self._askers or (self._awaited and time.monotonic() < self._deadline):
            return
        self._result = self._conclude(self._answers, len(self._awaited))
        self._fresh_until = time.monotonic() + FRESH_S
        askers, self._askers = self._askers, []
        for asker in askers:
            _reply(asker, self._result)


def _reply(asker: Asker, result: Any) -> None:
    child, number = asker
    child.send_value({"result": result, "number": number})
