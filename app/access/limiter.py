"""Enforces the limits of access keys.

Rates and requests at a time are counted in memory, which the processes of one service share. Photos
a day are counted in the database: a process reserves some of them at a time, so that most calls
write nothing.

Limits belong to the name of a key: a key and the one that replaces it share them. Those of tokens
belong to their subject. Everything here runs on the event loop.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Any

from app.access.keys import AccessKey, KeyLimits, TokenBucket
from app.access.store import UsageStore
from app.errors import LikenessError, QuotaExceeded, RateLimited
from app.processes.shared_records import SharedRecords
from app.store.database import now_utc
from app.telemetry.logs import log

# Of a day's quota that a process reserves at a time: 1 %, so that at most this is unavailable to
# the others, or lost if the process is killed.
RESERVED_SHARE = 0.01
RESERVED_MOST = 1000
# A quota that is used up is looked up again after this time: it may have been raised.
ASK_AGAIN_S = 5.0
DAY_S = 86_400
# Names of keys and subjects of tokens whose use is kept in memory. Beyond this number the one that
# has been idle longest is forgotten, and its counts begin at 0 with its next request.
MOST_USERS = 10_000

Run = Callable[..., Awaitable[Any]]
_Item = tuple[str, str | None]


@dataclass(slots=True)
class _Quota:
    """Photos of one day that are reserved and not used, under which limit they were reserved, and
    those that nobody has reserved."""

    day: datetime
    limit: int | None = None
    reserved: int = 0
    unreserved: int | None = None  # not known before the first reservation
    asked_at: float = -math.inf
    reserving: asyncio.Lock = field(default_factory=asyncio.Lock)


class Limiter:
    """Admits the requests and photos that the limits of keys allow."""

    def __init__(
        self,
        usage: UsageStore,
        write: Run,
        clock: Callable[[], float],
        now: Callable[[], datetime] = now_utc,
        records: SharedRecords | None = None,
    ) -> None:
        """`write` runs a function that writes to the database, off the event loop. `records` are
        shared by the processes of a service, whose clocks agree."""
        self._records = records
        self._usage = usage
        self._write = write
        self._clock = clock
        self._now = now
        self._users: dict[str, _User] = {}  # the one used last at the end
        self._left = set[asyncio.Task[None]]()  # what no call waits for

    @contextmanager
    def request(self, key: AccessKey) -> Iterator[None]:
        """Count one request until it is answered. Raises RateLimited."""
        if not key.limits:
            yield
            return
        user = self._user(key)
        user.begin(key)
        try:
            yield
        finally:
            user.end()

    async def photos(self, key: AccessKey, count: int) -> None:
        """Count photos that a call brings. Raises RateLimited or QuotaExceeded; then none of them
        is counted."""
        if not count or not key.limits:
            return
        user = self._user(key)
        if key.limits.photos_per_day is not None:
            await self._reserve(key, user, key.limits.photos_per_day, count)
        user.take_photos(key, count)
        if key.limits.photos_per_day is not None:
            user.quota.reserved -= count

    def headers(self, key: AccessKey) -> dict[str, str]:
        """`RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10) of a key
        with limits; none for another. What remains of the photos of a day is not named before this
        process has asked for it on that day."""
        if not key.limits:
            return {}
        user = self._user(key)
        items = user.items(key.limits, self._today(), self._seconds_left())
        policies = [policy for policy, _ in items]
        remaining = [remains for _, remains in items if remains is not None]
        headers = {"RateLimit-Policy": ", ".join(policies)}
        return headers | ({"RateLimit": ", ".join(remaining)} if remaining else {})

    def release(self) -> None:
        """Give back what is reserved and was not used, as far as the database can be written to."""
        for name, user in self._users.items():
            quota = user.quota
            if not quota.reserved:
                continue
            try:
                self._usage.release(name, quota.day.date(), quota.reserved)
                quota.reserved = 0
            except LikenessError as error:  # they count as used until the day ends
                log(logging.WARNING, "reserved photos of a quota were not returned",
                    code=error.code)  # fmt: skip

    def _user(self, key: AccessKey) -> "_User":
        name = key.limited_as
        user = self._users.pop(name, None)
        if user is None:
            user = _User(self._clock, _Quota(self._today()), name, self._records)
            if len(self._users) >= MOST_USERS:
                self._forget_one()
        self._users[name] = user
        user.follow(key.limits)
        return user

    def _forget_one(self) -> None:
        idle = (one for one in self._users.items() if not one[1].running)
        name, user = next(idle, (None, None))
        if name is None or user is None:
            return
        del self._users[name]
        if user.quota.reserved:
            self._leave(asyncio.create_task(self._give_back(name, user.quota)))

    async def _give_back(self, name: str, quota: _Quota) -> None:
        try:
            await self._write(self._usage.release, name, quota.day.date(), quota.reserved)
        except LikenessError as error:  # they count as used until the day ends
            log(logging.WARNING, "reserved photos of a quota were not returned",
                code=error.code)  # fmt: skip

    async def _reserve(self, key: AccessKey, user: "_User", quota: int, count: int) -> None:
        """Reserve photos until at least `count` are reserved. Raises QuotaExceeded."""
        while True:
            if user.quota.day != self._today():
                user.quota = _Quota(self._today())
            found = user.quota
            if found.reserved >= count and found.limit == quota:
                return
            await self._shielded(self._reserve_more(key.limited_as, found, quota, count))
            # Another call may have used what was reserved; then reserve again while some is left.
            left = found.reserved + (found.unreserved or 0)
            if left < count:
                raise QuotaExceeded(
                    f"{key.title} may send {quota} photos a day and has {left} "
                    f"left; this call has {count}. The day ends at 00:00 UTC.",
                    {"retry_after": self._seconds_left(), "limit": "photos_per_day"},
                )

    async def _shielded(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for work that goes on if the call is cancelled: what it reserves must be known."""
        task = asyncio.create_task(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self._leave(task)
            raise

    def _leave(self, task: asyncio.Task[None]) -> None:
        """Keep a task that no call waits for, and log its failure."""
        self._left.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._left.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, LikenessError):
            log(logging.WARNING, "photos of a quota were not reserved", code=error.code)
        elif error is not None:
            raise error  # a fault of the program, which the event loop logs

    def _is_used_up(self, found: _Quota, count: int) -> bool:
        """Whether too few were left when they were last looked up, a short time ago."""
        recent = self._clock() - found.asked_at < ASK_AGAIN_S
        return recent and found.reserved + (found.unreserved or 0) < count

    async def _reserve_more(self, name: str, found: _Quota, quota: int, count: int) -> None:
        wanted = max(count, min(RESERVED_MOST, math.ceil(quota * RESERVED_SHARE)))
        async with found.reserving:
            if found.limit != quota:
                await self._begin_again(name, found)
                found.limit = quota
            needed = count - found.reserved
            if needed <= 0 or self._is_used_up(found, count):
                return
            got, left = await self._write(
                self._usage.reserve, name, found.day.date(), needed, wanted, quota
            )
            found.reserved += got
            found.unreserved = left
            found.asked_at = self._clock()

    async def _begin_again(self, name: str, found: _Quota) -> None:
        """Give back what was reserved under another limit, and look up again what is left."""
        given, found.reserved = found.reserved, 0
        if given:
            try:
                await self._write(self._usage.release, name, found.day.date(), given)
            except BaseException:
                found.reserved += given
                raise
        found.unreserved, found.asked_at = None, -math.inf

    def _today(self) -> datetime:
        return datetime.combine(self._now().astimezone(UTC).date(), time(), UTC)

    def _seconds_left(self) -> int:
        """Seconds until the day ends."""
        return math.ceil((self._today() + timedelta(days=1) - self._now()).total_seconds())


class _User:
    """What the keys of one name have used."""

    def __init__(
        self,
        clock: Callable[[], float],
        quota: _Quota,
        name: str,
        records: SharedRecords | None,
    ) -> None:
        self._clock = clock
        self._record = f"limits {name}"
        self._records = records
        self._requests: TokenBucket | None = None
        self._photos: TokenBucket | None = None
        self.running = 0
        self.quota = quota

    def follow(self, limits: KeyLimits) -> None:
        """Apply limits that may have changed since the last call."""
        self._requests = self._followed(self._requests, limits.requests_per_second)
        self._photos = self._followed(self._photos, limits.photos_per_second)

    def begin(self, key: AccessKey) -> None:
        """Count a request that begins. Raises RateLimited."""
        most = key.limits.concurrent_requests
        with self._shared_with_others() as elsewhere:
            if most is not None and self.running + elsewhere >= most:
                raise _limited(f"{most} requests at a time", key, "concurrent_requests", 1.0)
            wait = self._requests.take() if self._requests else 0.0
            if wait:
                raise _limited(
                    f"{key.limits.requests_per_second:g} requests a second", key,
                    "requests_per_second", wait,
                )  # fmt: skip
            self.running += 1

    def end(self) -> None:
        """Count a request that was answered."""
        with self._shared_with_others():
            self.running -= 1

    @contextmanager
    def _shared_with_others(self) -> Iterator[int]:
        """Hold the record that all processes share: the buckets have what the others have used, and
        what is used within the context is left there. Gives the requests that run in the others."""
        if self._records is None:
            yield 0
            return
        places = ((self._requests, 0), (self._photos, 2))
        with self._records.held(self._record) as shared:
            for bucket, at in places:
                if bucket is not None and shared.values[at + 1]:
                    bucket.state = (shared.values[at], shared.values[at + 1])
            try:
                yield shared.elsewhere
            finally:
                for bucket, at in places:
                    if bucket is not None:
                        shared.values[at : at + 2] = bucket.state
                shared.here = self.running

    def take_photos(self, key: AccessKey, count: int) -> None:
        """Count photos. Raises RateLimited."""
        if self._photos is None:
            return
        with self._shared_with_others():
            wait = self._photos.take(count)
        if wait:
            raise _limited(
                f"{key.limits.photos_per_second:g} photos a second", key, "photos_per_second", wait
            )

    def items(self, limits: KeyLimits, today: datetime, seconds_left: int) -> list[_Item]:
        """For each limit the item of its policy and the item of what remains, if that is known."""
        with self._shared_with_others() as elsewhere:
            items = list(self._items(limits, self.running + elsewhere))
        quota, remains = limits.photos_per_day, None
        if quota is not None:
            unreserved = self.quota.unreserved if self.quota.day == today else None
            if unreserved is not None:
                photos = min(quota, unreserved + self.quota.reserved)
                remains = f'"photos-a-day";r={photos};t={seconds_left}'
            items.append((f'"photos-a-day";q={quota};w={DAY_S}', remains))
        return items

    def _items(self, limits: KeyLimits, running: int) -> Iterator[_Item]:
        for name, bucket in (("requests", self._requests), ("photos", self._photos)):
            if bucket is not None:
                policy = f'"{name}";q={bucket.capacity};w={bucket.window_s}'
                yield policy, f'"{name}";r={bucket.remaining()};t={bucket.seconds_to_full()}'
        most = limits.concurrent_requests
        if most is not None:
            remaining = max(0, most - running)
            yield f'"concurrent";q={most};qu="concurrent-requests"', f'"concurrent";r={remaining}'

    def _followed(self, bucket: TokenBucket | None, rate: float | None) -> TokenBucket | None:
        if rate is None:
            return None
        if bucket is None:
            return TokenBucket(rate, self._clock)
        if bucket.rate != rate:
            bucket.change_rate(rate)
        return bucket


def _limited(allowed: str, key: AccessKey, limit: str, wait: float) -> RateLimited:
    seconds = max(1, math.ceil(wait))
    return RateLimited(
        f"{key.title} may send {allowed}. Try again in {seconds} s.",
        {"retry_after": seconds, "limit": limit},
    )
