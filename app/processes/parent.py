"""The parent of a service's processes: accepts connections, and keeps its children running.

One thread with one loop, which computes nothing: it hands each connection to the child that has the
fewest, starts a new child where one ends, and passes questions on that all of them must answer.
"""

import logging
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from app.processes.acceptor import Acceptor
from app.processes.children import Child, Children, GatheredAnswers, State
from app.processes.generations import Generation, Generations, Role
from app.processes.messages import (
    AT_ONCE,
    END,
    METRICS,
    PIECE,
    READY,
    REPLACED,
    STOP,
    ControlLost,
    signal_numbers,
)  # fmt: skip
from app.processes.starting import Plan
from app.telemetry.logs import log
from app.telemetry.summed_metrics import SummedMetrics

TICK_S = 0.1
# A child is asked for its metrics, and answers from its event loop.
ASK_EVERY_S = 5.0
# More between two rounds: this process was suspended, as `docker pause` does.
SUSPENDED_S = 1.0
LONGEST_PAUSE_S = 30.0
AT_ONCE_S = 5.0
CANNOT_START = 2


class Parent:
    """Serves until a signal. SIGTERM and SIGINT stop: the first one drains, the second ends all at
    once. SIGHUP replaces the children: first the one that runs the networks, if there is one, then
    the others, one after the other."""

    def __init__(
        self, plan: Plan, listeners: Sequence[socket.socket], announce: Callable[[str], None]
    ) -> None:
        """`announce` is called with the first child's text once connections are accepted."""
        self._plan = plan
        self._announce = announce
        self._selector = selectors.DefaultSelector()
        self._acceptor = Acceptor(self._selector, listeners, self._hand)
        self._children = Children(self._selector, self._on_channel, self._on_control)
        self._to_replace: deque[Child] = deque()
        self._asked_to_replace = False
        self._started = 0  # children so far
        self._served = 0  # those that came to serve
        self._failures = 0  # in a row
        self._start_at = self._asked_at = 0.0
        self._ticked_at = time.monotonic()
        self._stop_at: float | None = None  # when no connection is accepted any more
        self._kill_at: float | None = None  # those that do not end at once
        self._signals = 0
        self._status = 0
        self._metrics = SummedMetrics()
        self._generations = Generations(with_networks=plan.networks is not None)
        self._gatherings = {
            METRICS: GatheredAnswers(METRICS, self._sum),
            READY: GatheredAnswers(READY, self._readiness),
        }

    def run(self) -> int:
        """The exit status."""
        with signal_numbers() as numbers:
            self._selector.register(
                numbers, selectors.EVENT_READ, lambda _: self._on_signals(numbers.recv(PIECE))
            )
            while self._stop_at is None or self._children:
                self._keep_running()
                for key, events in self._selector.select(TICK_S):
                    key.data(events)
                self._tick()
        self._acceptor.close()
        if self._status == 0:
            log(logging.INFO, "stopped", processes=self._started)
        return self._status

    # --- children ----------------------------------------------------------------------------

    def _keep_running(self) -> None:
        """Start children where some are missing. The first one migrates the database, and shows
        whether the service can start at all: the others follow it."""
        if self._stop_at is not None or time.monotonic() < self._start_at:
            return
        if self._plan.networks is not None:
            for one in self._generations.without_networks(self._children):
                self._start(Role.NETWORKS, self._plan.networks, one)
            if self._generations.current in self._generations.without_networks(self._children):
                return  # those that serve would wait for it
        starting = len(self._children.within(State.STARTING))
        wanted = self._plan.count + bool(self._to_replace) if self._served else 1
        for _ in range(wanted - starting - len(self._children.within(State.SERVING))):
            self._start(Role.SERVING, self._plan.command, self._generations.current)

    def _start(self, role: Role, command: Sequence[str], generation: Generation) -> None:
        try:
            self._children.start(command, role, generation)
        except OSError as error:
            log(logging.ERROR, "a process cannot be started", error)
            self._note_failure(CANNOT_START, generation)
        else:
            self._started += 1

    def _note_failure(self, status: int, generation: Generation) -> None:
        """A child did not come to serve, or only for a short time."""
        if generation is self._generations.coming:
            log(logging.ERROR, "the networks cannot be replaced; those that run are kept")
            self._generations.coming = None
            return
        self._failures += 1
        pause = min(LONGEST_PAUSE_S, 2.0**self._failures / 2)
        self._start_at = time.monotonic() + pause
        if self._to_replace and generation is self._generations.current:
            log(logging.ERROR, "a process cannot be replaced; those that serve are kept")
            self._to_replace.clear()
            self._generations.return_to(self._children.within(State.SERVING))
        if not self._served:
            self._status = status if status > 0 else CANNOT_START
            self._stop_at = 0.0
            for child in self._children:  # the others would wait for it
                child.kill()

    def _on_channel(self, child: Child) -> None:
        if not child.read_channel():
            self._children.forget_socket(child, control=False)

    def _on_control(self, child: Child) -> None:
        try:
            values = child.lines.receive()
        except ControlLost:
            self._children.forget_socket(child, control=True)
            return
        child.heard_at = time.monotonic()
        for value in values:
            self._on_value(child, value)

    def _on_value(self, child: Child, value: dict[str, Any]) -> None:
        if "up" in value:
            if child.state is State.STARTING:  # and not killed meanwhile
                self._begin_serving(child, value["up"])
        elif "ask" in value:
            roles = Role if value["ask"] == METRICS else (Role.SERVING,)
            asked = self._children.within(State.SERVING, *roles)
            self._gatherings[value["ask"]].ask((child, value["number"]), asked)
        elif "answer" in value:
            if value["answer"] == METRICS:
                child.exposition = value["value"]
            self._gatherings[value["answer"]].answer(child, value["number"], value["value"])
        elif "last" in value:
            child.exposition = value["last"]

    def _begin_serving(self, child: Child, announcement: str) -> None:
        child.enter(State.SERVING)
        if child.role is Role.NETWORKS:
            log(logging.INFO, "a process runs the networks", process=child.pid)
            if child.generation is self._generations.coming:
                self._replace_serving()
            return
        self._served += 1
        if self._served == 1:
            self._acceptor.listen()
            self._announce(announcement)
        log(logging.INFO, "a process serves", process=child.pid, of=self._plan.count)
        if self._to_replace:
            self._leave(self._to_replace.popleft())
        self._accept_again()

    def _replace_all(self) -> None:
        """Begin to replace all processes, unless that is under way: then once it has ended, for
        there may be new files since it began."""
        leaving = any(one.state is State.LEAVING for one in self._children)
        busy = self._generations.coming or self._to_replace or (self._plan.networks and leaving)
        if busy or not self._served:
            return
        self._asked_to_replace = False
        log(logging.INFO, "processes are replaced", processes=len(self._children))
        coming = self._generations.begin()
        if self._plan.networks is None:
            self._replace_serving()
        else:
            self._start(Role.NETWORKS, self._plan.networks, coming)

    def _replace_serving(self) -> None:
        """Replace those of other generations than the coming one, one after the other."""
        self._generations.take_over()
        for child in self._children.within(State.STARTING):
            if child.generation is not self._generations.current:
                child.enter(State.LEAVING)
                child.kill()
        self._to_replace = deque(self._children.within(State.SERVING))

    def _leave(self, child: Child) -> None:
        """Give a child no further connections, and let it finish those it has."""
        if child.state is State.SERVING:
            child.enter(State.LEAVING)
            child.order(REPLACED)
            child.end_at = time.monotonic() + self._plan.drain_s

    def _remove(self, child: Child, status: int) -> None:
        """Take over what a child that has ended leaves: its metrics, its counts, its place."""
        for value in self._children.remove(child):
            self._on_value(child, value)
        with suppress(ValueError):
            self._to_replace.remove(child)
        for gathering in self._gatherings.values():
            gathering.forget(child)
        self._metrics.end(child.exposition)
        if child.state is State.LEAVING or self._stop_at is not None:
            return
        follows = "another one takes its place" if self._served else "the service cannot start"
        log(logging.ERROR, "a process ended by itself", process=child.pid, status=status,
            state=child.state.name.lower(), next=follows)  # fmt: skip
        if child.has_lived_shortly:
            self._note_failure(status, child.generation)
        else:
            self._failures = 0

    # --- connections -------------------------------------------------------------------------

    def _hand(self, connection: socket.socket) -> bool:
        """To the child with the fewest connections that has room; to one that may hang only if
        there is no other."""
        lately = time.monotonic() - self._plan.silent_s / 2
        return any(child.take(connection) for child in self._children.by_load(lately))

    def _accept_again(self) -> None:
        if self._children.within(State.SERVING):
            self._acceptor.resume()

    # --- questions ---------------------------------------------------------------------------

    def _sum(self, _answers: dict[int, Any], _missing: int) -> str:
        # Of a child that did not answer the last known numbers: a sum must not fall.
        return self._metrics.of([one.exposition for one in self._children if one.exposition])

    def _readiness(self, answers: dict[int, Any], missing: int) -> dict[str, Any]:
        starting = self._served < self._plan.count and not self._failures
        return {"answers": list(answers.values()), "missing": missing, "starting": starting}

    # --- time --------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        if (gap := now - self._ticked_at) > SUSPENDED_S:
            for child in self._children:
                child.forgive(gap)
        self._ticked_at = now
        for child in self._children:
            if (status := child.ended()) is not None:
                self._remove(child, status)
                continue
            child.flush()
            self._check(child, now)
        if os.getpid() == 1:
            self._children.reap_others()
        if now - self._asked_at > ASK_EVERY_S:
            self._asked_at = now
            for child in self._children.within(State.SERVING, *Role):
                # The answer is its sign of life. If it is killed, its last numbers are still known.
                child.send_value({"want": METRICS, "number": 0})
        for gathering in self._gatherings.values():
            gathering.tick()
        if self._stop_at is not None and now > self._stop_at and self._acceptor.listening:
            self._end_all()
        self._end_unused_networks()
        self._generations.forget_unused(self._children)
        if self._asked_to_replace and self._stop_at is None:
            self._replace_all()
        self._accept_again()

    def _end_unused_networks(self) -> None:
        """Those that asked them have ended."""
        stopping = self._stop_at is not None
        for child in self._children.of(Role.NETWORKS):
            used = self._generations.is_used(child.generation, self._children, stopping=stopping)
            if used or child.state is State.LEAVING:
                continue
            if child.state is State.STARTING:
                child.kill()
            child.enter(State.LEAVING)
            child.order(END)

    def _check(self, child: Child, now: float) -> None:
        serves = child.state is State.SERVING and self._stop_at is None
        if serves and child.leave_at is not None and now > child.leave_at:
            log(logging.INFO, "a process was asked to end", process=child.pid)
            child.leave_at = None
            if child.role is Role.SERVING:
                self._leave(child)
            elif child.generation is self._generations.current:  # others ask it
                self._asked_to_replace = True
        if child.end_at is not None and now > child.end_at:
            child.end_at = None
            child.order(END)
        if self._kill_at is not None and now > self._kill_at:
            child.kill()
        elif child.is_late(self._plan, now):
            log(logging.ERROR, "a process is killed: it does not answer", process=child.pid)
            child.kill()

    # --- signals -----------------------------------------------------------------------------

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._on_stop(signal.Signals(number))
            elif number == signal.SIGHUP:
                self._asked_to_replace = True

    def _on_stop(self, number: signal.Signals) -> None:
        self._signals += 1
        if self._signals > 1:
            self._acceptor.close()
            self._kill_at = time.monotonic() + AT_ONCE_S
            for child in self._children:
                child.order(AT_ONCE)
            return
        log(logging.INFO, "stopping", signal=number.name, drain_seconds=self._plan.drain_s)
        self._stop_at = time.monotonic() + self._plan.drain_s
        for child in self._children.within(State.STARTING, *Role):
            child.kill()
        for child in self._children.of(Role.SERVING):  # also those that leave
            child.order(STOP)

    def _end_all(self) -> None:
        """Accept what has connected already, then nothing more."""
        self._acceptor.accept_all()
        self._acceptor.close()
        for child in self._children.of(Role.SERVING):
            if child.state is not State.LEAVING:
                child.enter(State.LEAVING)
            child.end_at = None
            child.order(END)
