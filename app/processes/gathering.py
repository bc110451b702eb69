"""Questions that every child must answer, because a client's question is about the whole service
and not one process."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from app.processes.child import Child

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
