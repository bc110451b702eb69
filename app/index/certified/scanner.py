"""Who scans coded shards for candidates: threads of the CPU, or a device."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Protocol

from app.index.certified.rows import Shard
from app.index.certified.search import ProbeSearch


class ShardScanner(Protocol):
    """Searches shards. It may hold copies of them."""

    def cover(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        """Leave no row of the shards unseen that could be in an answer."""
        ...

    def renew(self, shards: Sequence[Shard]) -> None:
        """Free the copies of those shards that lost rows since."""
        ...

    def forget(self, shards: Sequence[Shard]) -> None:
        """Free the copies of shards that are searched no more."""
        ...


class ThreadScanner:
    """Scans the codes on threads: several probes at once, or several shards for one probe."""

    def __init__(self, threads: Executor) -> None:
        self._threads = threads

    def cover(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        """Leave no row of the shards unseen that could be in an answer."""
        if len(searches) == 1:
            list(self._threads.map(searches[0].cover, shards))
        else:
            list(self._threads.map(lambda search: _cover_all(search, shards), searches))

    def renew(self, shards: Sequence[Shard]) -> None:
        """There are no copies."""

    def forget(self, shards: Sequence[Shard]) -> None:
        """There are no copies."""


def _cover_all(search: ProbeSearch, shards: Sequence[Shard]) -> None:
    for shard in shards:
        search.cover(shard)
