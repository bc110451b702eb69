"""Locks that tell what happens to them: for tests of orders and interleavings."""

import threading
from collections.abc import Callable
from types import TracebackType

BEFORE, TAKEN, RELEASED = "before", "taken", "released"
PATIENCE_S = 0.15  # of a thread that may wait for the one who is interrupted
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


class Pause:
    """Interrupts a thread that called `arm` when it comes to an event of a lock for the `at`-th
    time: it stands still while another runs `work`, until that ends or waits for what the first
    holds."""

    def __init__(self) -> None:
        self._armed: tuple[int, str, str] | None = None
        self._left = 0
        self._work: Callable[[], object] = list
        self._thread: threading.Thread | None = None

    def lock(self, name: str) -> WatchedLock:
        """For `made_by`."""
        return WatchedLock(name, self._observe)

    def arm(self, event: str, name: str, work: Callable[[], object], at: int = 1) -> None:
        """Interrupt this thread there, once."""
        self._armed, self._left, self._work = (threading.get_ident(), event, name), at, work

    def finish(self) -> None:
        """Wait for what ran meanwhile. AssertionError where nothing did, or it does not end."""
        assert self._thread is not None, "the thread did not come there"
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _observe(self, event: str, name: str) -> None:
        if self._armed != (threading.get_ident(), event, name):
            return
        self._left -= 1
        if not self._left:
            self._armed = None
            self._thread = threading.Thread(target=self._work)
            self._thread.start()
            self._thread.join(PATIENCE_S)
