"""Notices when a key is used to try many faces or ids that are not in the gallery.

Somebody who has a key can find out who is enrolled by sending photo after photo. Each answer alone
is an ordinary one; many misses in a short time are not. They are reported, never refused,
because a camera in a street has many unknown faces too.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from app.access.keys import AccessKey
from app.processes.shared_records import SharedRecords

# Names whose misses are in memory; beyond it the one without a miss for longest is forgotten.
MOST_NAMES = 10_000


@dataclass(slots=True)
class _Misses:
    """The misses of the keys of one name, by second, within the window."""

    by_second: deque[tuple[int, int]] = field(default_factory=deque)
    total: int = 0
    reported_at: float | None = None


class ProbingMonitor:
    """Counts misses: faces that are `unknown`, verifications with a person that do not reach the
    threshold or whose person does not exist. For the event loop alone."""

    def __init__(
        self,
        limit: int,
        window_s: int,
        report: Callable[[str, int], None],
        clock: Callable[[], float],
        records: SharedRecords | None = None,
    ) -> None:
        """`report(name, misses)` is called when a key's misses of `window_s` seconds reach `limit`,
        and once a window for as long as they do. With `records` the misses of all processes count,
        and one of them reports; `clock` must be the same for all."""
        self._records = records
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
        if self._records is None:
            self._count_here(key.name, misses, now)
        else:
            self._count_with_others(self._records, key.name, misses, now)

    def _count_here(self, name: str, misses: int, now: float) -> None:
        found = self._by_name.pop(name) if name in self._by_name else _Misses()
        self._by_name[name] = found
        if len(self._by_name) > MOST_NAMES:
            del self._by_name[next(iter(self._by_name))]
        self._add(found, int(now), misses)
        due = found.reported_at is None or now - found.reported_at >= self._window_s
        if found.total >= self._limit and due:
            found.reported_at = now
            self._report(name, found.total)

    def _count_with_others(
        self, records: SharedRecords, name: str, misses: int, now: float
    ) -> None:
        """A record has room for four numbers, so the window that ends now is estimated: the misses
        of the current window, and of the one before it the part that is still within."""
        began = now - now % self._window_s
        with records.held(f"misses {name}") as record:
            known, current, before, reported_at = record.values
            if known != began:
                before = current if known == began - self._window_s else 0.0
                current = 0.0
            current += misses
            total = int(current + before * (1 - (now - began) / self._window_s))
            due = total >= self._limit and not 0 < reported_at > now - self._window_s
            record.values = [began, current, before, now if due else reported_at]
        if due:
            self._report(name, total)

    def _add(self, found: _Misses, second: int, misses: int) -> None:
        found.total += misses
        if found.by_second and found.by_second[-1][0] == second:
            misses += found.by_second.pop()[1]
        found.by_second.append((second, misses))
        while found.by_second[0][0] <= second - self._window_s:
            found.total -= found.by_second.popleft()[1]
