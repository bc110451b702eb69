"""The children of a parent."""

import os
import selectors
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from app.processes.child import Child, State
from app.processes.generations import Generation, Role
from app.processes.messages import ControlLost
from app.processes.shared_records import COLUMNS, SharedRecords, shared_file


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
