"""Locks that tell what happens to them: for tests of orders and interleavings."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

BEFORE, TAKEN, RELEASED = "before", "taken", "released"
PATIENCE_S = 0.15  # of a thread that may wait for the one who is interrupted
PAGE = Path(__file__).parents[1] / "docs" / "concurrency.md"
Observer = Callable[[str, str], None]


class WatchedLock:
    """A lock that calls `observe(event, name)` before it is taken, then, and after its release."""

    def __init__(self, name: str, observe: Observer) -> None:
        self.name = name
        self._observe = observe
        self._lock = threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._observe(BEFORE, self.name)
        taken = self._lock.acquire(blocking, timeout)
        if taken:
            self._observe(TAKEN, self.name)
        return taken

    def release(self) -> None:
        self._lock.release()
        self._observe(RELEASED, self.name)

    def locked(self) -> bool:
        return self._lock.locked()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.release()


class Order:
    """Notes which locks are taken under which, and compares it with docs/concurrency.md."""

    def __init__(self) -> None:
        self._held = threading.local()
        self.pairs: set[tuple[str, str]] = set()  # outer, inner

    def lock(self, name: str) -> WatchedLock:
        """For `made_by`."""
        return WatchedLock(name, self.observe)

    def observe(self, event: str, name: str) -> None:
        """What happens to a lock, in the thread that does it."""
        held: list[str] = self._held.__dict__.setdefault("names", [])
        if event == TAKEN:
            self.pairs |= {(outer, name) for outer in held}
            held.append(name)
        elif event == RELEASED:
            held.remove(name)

    def undocumented(self) -> set[tuple[str, str]]:
        """Pairs that the page does not allow."""
        under = documented()
        return {(outer, inner) for outer, inner in self.pairs if outer not in under[inner]}


def documented() -> dict[str, set[str]]:
    """The locks of the page's table, outermost first, and what each may be taken under: what its
    line names, and what those are taken under."""
    table = PAGE.read_text().split("## Locks of a process")[1].split("\n## ")[0]
    under: dict[str, set[str]] = {}
    for name, last in re.findall(r"^\| `([a-z.]+)` \|.*\| ([^|]*) \|$", table, re.MULTILINE):
        named = re.findall(r"`([a-z.]+)`", last)
        assert all(one in under for one in named), f"{name} stands above what it is taken under"
        under[name] = {*named}.union(*(under[one] for one in named))
    return under


class Pause:
    """Interrupts the thread that called `arm` when it comes to an event of a lock for the `at`-th
    time: it stands still while another thread runs `work`, until that ends or waits for what the
    first holds."""

    def __init__(self) -> None:
        self._armed: tuple[int, str | None, str | None] | None = None
        self._left = 0
        self._work: Callable[[], object] = list
        self._patience_s = PATIENCE_S
        self._thread: threading.Thread | None = None
        self.where = ""  # the last interruption: event and name

    def lock(self, name: str) -> WatchedLock:
        """For `made_by`."""
        return WatchedLock(name, self.observe)

    def arm(
        self,
        work: Callable[[], object],
        *,
        event: str | None = None,
        name: str | None = None,
        at: int = 1,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Interrupt this thread, once; None is any event of any lock. `patience_s`: how long the
        work may take, where it waits for nothing that this thread holds."""
        self._work, self._thread, self._left = work, None, at
        self._patience_s = patience_s
        self._armed = (threading.get_ident(), event, name)

    def disarm(self) -> bool:
        """Whether the thread did not come there; else wait for what ran meanwhile."""
        self._armed = None
        if self._thread is None:
            return True
        self._thread.join(60)
        assert not self._thread.is_alive(), f"a thread hangs that ran meanwhile at {self.where}"
        return False

    def observe(self, event: str, name: str) -> None:
        """What happens to a lock."""
        if self._armed is None or self._armed[0] != threading.get_ident():
            return
        if self._armed[1] not in (None, event) or self._armed[2] not in (None, name):
            return
        self._left -= 1
        if not self._left:
            self._armed, self.where = None, f"{event} {name}"
            self._thread = threading.Thread(target=self._work)
            self._thread.start()
            self._thread.join(self._patience_s)
