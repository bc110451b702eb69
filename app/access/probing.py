"""Notices when a key is used to try many faces or ids that are not in the gallery.

Somebody who has a key can find out who is enrolled by sending photo after photo. Each answer alone
is an ordinary one; many misses in a short time are not. They are reported, never refused,
because a camera in a street has many unknown faces too.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from app.access.keys import AccessKey


@dataclass(slots=True)
class _Misses:
    """The misses of the keys of one name, by second, within the window."""

    by_second: deque[tuple[int, int]] = field(default_factory=deque)
    total: int = 0
    reported_at: float | None = None


class ProbingMonitor:
    """Counts misses: faces that are `unknown`, verifications that are no match. For the event
    loop alone."""

    def __init__(
        self,
        limit: int,
        window_s: int,
        report: Callable[[str, int], None],
        clock: Callable[[], float],
    ) -> None:
        """`report(name, misses)` is called when a key's misses of `window_s` seconds reach `limit`,
        and once a window for as long as they do."""
        self._limit = limit
        self._window_s = window_s
        self._report = report
        self._clock = clock
        self._by_name: dict[str, _Misses] = {}

    def count(self, key: AccessKey, misses: int) -> None:
        """Count misses of one call."""
        if not misses:
            return
        now = self._clock()
        found = self._by_name.setdefault(key.name, _Misses())
        self._add(found, int(now), misses)
        due = found.reported_at is None or now - found.reported_at >= self._window_s
        if found.total >= self._limit and due:
            found.reported_at = now
            self._report(key.name, found.total)

    def _add(self, found: _Misses, second: int, misses: int) -> None:
        found.total += misses
        if found.by_second and found.by_second[-1][0] == second:
            misses += found.by_second.pop()[1]
        found.by_second.append((second, misses))
        while found.by_second[0][0] <= second - self._window_s:
            found.total -= found.by_second.popleft()[1]
