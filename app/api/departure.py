"""Whether the client of a request has left."""

from collections.abc import Callable


class Departure:
    """Whether the client of a request has closed the connection. Calling a function then costs less
    than a task that waits for it in each request."""

    __slots__ = ("_happened", "_read", "_then")

    def __init__(self, read: Callable[[], object]) -> None:
        """`read` makes the server read from the connection again if it has paused."""
        self._read = read
        self._happened = False
        self._then: Callable[[], object] | None = None

    def watch(self, then: Callable[[], object]) -> None:
        """Call a function when the client leaves, or now if it has left."""
        if self._happened:
            then()
        else:
            self._then = then
            self._read()  # it does not read on after the last piece of a large body

    def ignore(self) -> None:
        """Call it no longer."""
        self._then = None

    def happen(self) -> None:
        """The client has left."""
        self._happened = True
        then, self._then = self._then, None
        if then is not None:
            then()
