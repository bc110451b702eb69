"""Limits of keys: rates, requests at a time, photos a day."""

import asyncio
import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest

from app.access import limiter as module
from app.access.keys import AccessKey, KeyLimits, NewKey, Scope, TokenBucket, stored_limits
from app.access.limiter import ASK_AGAIN_S, Limiter
from app.access.probing import ProbingMonitor
from app.access.registry import AccessRegistry
from app.access.store import KEPT_DAYS, AccessKeyStore, UsageStore
from app.errors import QuotaExceeded, RateLimited, StoreUnavailable
from app.processes.shared_records import SharedRecords, shared_file
from tests.access.conftest import Clock


class TestTokenBucket:
    def test_a_second_s_worth_at_once_then_the_rate(self, clock: Clock) -> None:
        bucket = TokenBucket(4, lambda: clock.seconds)
        assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0]
        assert bucket.take() == pytest.approx(0.25)
        clock.later(0.25)
        assert [bucket.take(), bucket.take() > 0] == [0, True]

    @pytest.mark.parametrize("rate", [0.1, 0.5, 3, 7.3, 250])
    def test_the_mean_is_kept_however_units_are_grouped(self, clock: Clock, rate: float) -> None:
        bucket = TokenBucket(rate, lambda: clock.seconds)
        taken = 0
        for step in range(3000):
            clock.later(0.1)
            units = 1 + step % 40
            taken += units if bucket.take(units) == 0 else 0
        assert taken <= 300 * rate + bucket.capacity + 40
        assert taken >= 0.5 * 300 * rate

    def test_the_time_it_names_is_enough(self, clock: Clock) -> None:
        bucket = TokenBucket(0.3, lambda: clock.seconds)
        for units in (1, 5, 2, 32):
            while wait := bucket.take(units):
                clock.later(wait)
                assert bucket.take(units) == 0
                break

    def test_a_clock_that_goes_back_gives_nothing(self, clock: Clock) -> None:
        bucket = TokenBucket(1, lambda: clock.seconds)
        bucket.take()
        clock.later(-1000)
        assert bucket.take() > 0
        clock.later(1)
        assert bucket.take() == 0

    def test_another_rate_forgives_nothing(self, clock: Clock) -> None:
        bucket = TokenBucket(10, lambda: clock.seconds)
        bucket.take(30)  # 20 in debt
        bucket.change_rate(20)
        assert bucket.take() == pytest.approx(21 / 20)


@pytest.fixture
def usage(store: AccessKeyStore) -> UsageStore:
    return UsageStore(store._database)


async def run(work: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(work, *args)


@pytest.fixture
def limiter(usage: UsageStore, clock: Clock) -> Limiter:
    return Limiter(usage, run, lambda: clock.seconds, lambda: clock.now)


def key_with(clock: Clock, key_id: str = "a" * 12, **limits: Any) -> AccessKey:
    return AccessKey(
        key_id, "entrance", frozenset(Scope), None, clock.now, limits=KeyLimits(**limits)
    )


class TestLimiter:
    def test_requests_a_second(self, limiter: Limiter, clock: Clock) -> None:
        key = key_with(clock, requests_per_second=2)
        for _ in range(2):
            with limiter.request(key):
                pass
        with (
            pytest.raises(RateLimited, match="2 requests a second") as refused,
            limiter.request(key),
        ):
            pass
        assert refused.value.extra == {"retry_after": 1, "limit": "requests_per_second"}

    def test_requests_at_a_time(self, limiter: Limiter, clock: Clock) -> None:
        key = key_with(clock, concurrent_requests=1)
        with limiter.request(key):
            with pytest.raises(RateLimited, match="1 requests at a time"), limiter.request(key):
                pass
            assert limiter.headers(key)["RateLimit"] == '"concurrent";r=0'
        with pytest.raises(ZeroDivisionError), limiter.request(key):
            raise ZeroDivisionError
        with limiter.request(key):
            pass

    def test_a_key_and_its_successor_share_the_limits(self, limiter: Limiter, clock: Clock) -> None:
        old, new = (key_with(clock, one * 12, requests_per_second=1) for one in "ab")
        with limiter.request(old):
            pass
        with pytest.raises(RateLimited), limiter.request(new):
            pass

    def test_each_subject_of_tokens_has_limits_of_its_own(
        self, limiter: Limiter, clock: Clock
    ) -> None:
        """Whatever client it uses; a key of the same name is another user."""
        key = key_with(clock, requests_per_second=1)
        ada, bob = (replace(key, subject=one) for one in ("ada", "bob"))
        for one in (key, ada, bob):
            with limiter.request(one):
                pass
        again = replace(ada, name="oidc:another-client")
        with pytest.raises(RateLimited, match="The token's subject may"), limiter.request(again):
            pass

    def test_users_that_are_idle_longest_are_forgotten(
        self, limiter: Limiter, usage: UsageStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Except those with a request at work. Photos that were reserved are given back."""
        monkeypatch.setattr(module, "MOST_USERS", 3)
        key = key_with(clock, requests_per_second=1, photos_per_day=1000)
        users = [replace(key, subject=str(number)) for number in range(5)]

        async def use() -> None:
            with limiter.request(users[0]):
                await limiter.photos(users[1], 1)  # reserves 10
                for one in users[1:]:
                    with limiter.request(one):
                        pass
            await asyncio.gather(*limiter._left)

        asyncio.run(use())
        assert list(limiter._users) == [users[at].limited_as for at in (0, 3, 4)]
        assert usage.reserve(users[1].limited_as, clock.now.date(), 1, 1, 1000) == (1, 998)

    def test_photos_a_second(self, limiter: Limiter, clock: Clock) -> None:
        key = key_with(clock, photos_per_second=5)
        asyncio.run(limiter.photos(key, 32))  # more than the bucket holds: admitted once
        with pytest.raises(RateLimited, match="5 photos a second") as refused:
            asyncio.run(limiter.photos(key, 1))
        assert refused.value.extra["retry_after"] == 6  # 28 of 5 a second
        clock.later(5.6)
        asyncio.run(limiter.photos(key, 1))

    def test_the_headers_of_the_draft(self, limiter: Limiter, clock: Clock) -> None:
        key = key_with(clock, requests_per_second=0.5, photos_per_second=2.5, photos_per_day=1000)
        with limiter.request(key):
            asyncio.run(limiter.photos(key, 2))
            headers = limiter.headers(key)
        assert headers == {
            "RateLimit-Policy": '"requests";q=1;w=2, "photos";q=3;w=2, '
            '"photos-a-day";q=1000;w=86400',
            "RateLimit": '"requests";r=0;t=2, "photos";r=1;t=1, "photos-a-day";r=998;t=41400',
        }

    def test_a_key_without_limits_has_no_headers(self, limiter: Limiter, clock: Clock) -> None:
        with limiter.request(key_with(clock)):
            assert limiter.headers(key_with(clock)) == {}


class TestQuota:
    def test_it_ends_and_begins_again_at_midnight(self, limiter: Limiter, clock: Clock) -> None:
        key = key_with(clock, photos_per_day=10)

        async def send(*counts: int) -> None:
            for count in counts:
                await limiter.photos(key, count)

        asyncio.run(send(4, 5))
        with pytest.raises(QuotaExceeded, match="10 photos a day and has 1 left") as refused:
            asyncio.run(send(2))
        assert refused.value.extra["retry_after"] == 11.5 * 3600
        asyncio.run(send(1))
        clock.later(11.5 * 3600)
        asyncio.run(send(10))

    def test_the_headers_name_what_is_known_of_today(self, limiter: Limiter, clock: Clock) -> None:
        key = key_with(clock, photos_per_day=10)
        assert limiter.headers(key) == {"RateLimit-Policy": '"photos-a-day";q=10;w=86400'}
        asyncio.run(limiter.photos(key, 9))
        assert limiter.headers(key)["RateLimit"] == '"photos-a-day";r=1;t=41400'
        clock.later(11.5 * 3600)
        assert "RateLimit" not in limiter.headers(key)
        asyncio.run(limiter.photos(key, 1))
        assert limiter.headers(key)["RateLimit"] == '"photos-a-day";r=9;t=86400'

    def test_processes_share_it(self, usage: UsageStore, clock: Clock) -> None:
        key = key_with(clock, photos_per_day=500)
        both = [Limiter(usage, run, lambda: clock.seconds, lambda: clock.now) for _ in range(2)]

        async def send() -> int:
            sent = 0
            for turn in range(700):
                try:
                    await both[turn % 2].photos(key, 1)
                    sent += 1
                except QuotaExceeded:
                    clock.later(ASK_AGAIN_S / 100)
            return sent

        assert asyncio.run(send()) == 500

    @pytest.mark.parametrize("words", ["probing", "misses", "limits"])
    def test_a_name_gives_nobody_what_is_counted_of_another(
        self, usage: UsageStore, clock: Clock, words: str
    ) -> None:
        """The misses of a key are in the same table: they would be requests it may send."""
        clock.later(600)
        file = shared_file()
        records = SharedRecords(file, 0)
        monitor = ProbingMonitor(10, 60, lambda *_: None, lambda: clock.seconds, records)
        limiter = Limiter(usage, run, lambda: clock.seconds, lambda: clock.now, records)
        named = replace(key_with(clock, requests_per_second=1), name=f"{words} exit")
        with limiter.request(named):
            pass
        monitor.count(replace(key_with(clock), name="exit"), 9)
        with pytest.raises(RateLimited), limiter.request(named):
            pass
        os.close(file)

    def test_processes_share_rates_and_requests_at_a_time(
        self, usage: UsageStore, clock: Clock
    ) -> None:
        """As many are admitted by two processes as by one."""
        file = shared_file()
        one, other = (
            Limiter(
                usage, run, lambda: clock.seconds, lambda: clock.now,
                records=SharedRecords(file, column),
            )
            for column in range(2)
        )  # fmt: skip
        rate = key_with(clock, requests_per_second=4, photos_per_second=6)
        for turn in range(4):
            with (one, other)[turn % 2].request(rate):
                pass
        for limiter in (one, other):
            with pytest.raises(RateLimited, match="4 requests a second"), limiter.request(rate):
                pass
            assert '"requests";r=0' in limiter.headers(rate)["RateLimit"]
        asyncio.run(one.photos(rate, 5))
        asyncio.run(other.photos(rate, 1))
        for limiter in (one, other):
            with pytest.raises(RateLimited, match="6 photos a second"):
                asyncio.run(limiter.photos(rate, 1))
        clock.later(1 / 4)
        with other.request(rate):
            pass

        at_a_time = replace(rate, name="exit", limits=KeyLimits(concurrent_requests=2))
        with one.request(at_a_time):
            with other.request(at_a_time):
                for limiter in (one, other):
                    with pytest.raises(RateLimited), limiter.request(at_a_time):
                        pass
            with other.request(at_a_time):
                pass
        os.close(file)

    def test_what_was_reserved_is_given_back(self, usage: UsageStore, clock: Clock) -> None:
        key = key_with(clock, photos_per_day=1000)
        first = Limiter(usage, run, lambda: clock.seconds, lambda: clock.now)
        asyncio.run(first.photos(key, 3))
        assert usage.reserve("entrance", clock.now.date(), 1, 1000, 1000) == (990, 0)
        first.release()
        assert usage.reserve("entrance", clock.now.date(), 1, 1000, 1000) == (7, 0)

    def test_a_failure_to_give_back_keeps_no_other_from_it(
        self, usage: UsageStore, clock: Clock
    ) -> None:
        limiter = Limiter(usage, run, lambda: clock.seconds, lambda: clock.now)
        names = ["first", "second", "third"]
        for name in names:
            key = replace(key_with(clock, photos_per_day=1000), name=name)
            asyncio.run(limiter.photos(key, 3))

        class Failing(UsageStore):
            def release(self, name: str, day: date, photos: int) -> None:
                if name == "first":
                    raise StoreUnavailable("The database is away.")
                super().release(name, day, photos)

        limiter._usage = Failing(usage._database)
        limiter.release()
        today = clock.now.date()
        assert [usage.reserve(one, today, 0, 0, 1000)[1] for one in names] == [990, 997, 997]
        limiter._usage = usage
        limiter.release()
        assert [usage.reserve(one, today, 0, 0, 1000)[1] for one in names] == [997] * 3

    def test_a_call_that_is_cancelled_leaves_its_reservation_to_the_next(
        self, usage: UsageStore, clock: Clock
    ) -> None:
        key, began, go_on = key_with(clock, photos_per_day=100), asyncio.Event(), asyncio.Event()

        async def slow(work: Callable[..., Any], *args: Any) -> Any:
            reserved = await run(work, *args)
            began.set()
            await go_on.wait()
            return reserved

        async def scene() -> None:
            limiter = Limiter(usage, slow, lambda: clock.seconds, lambda: clock.now)
            gone = asyncio.create_task(limiter.photos(key, 50))
            await began.wait()
            gone.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await gone
            await limiter.photos(key, 100)

        asyncio.run(scene())

    def test_calls_at_the_same_time_use_all_of_it_and_no_more(
        self, usage: UsageStore, clock: Clock
    ) -> None:
        """One call may take what another has just reserved."""
        key = key_with(clock, photos_per_day=300)

        async def slow(work: Callable[..., Any], *args: Any) -> Any:
            await asyncio.sleep(0)
            return await run(work, *args)

        async def scene() -> int:
            limiter = Limiter(usage, slow, lambda: clock.seconds, lambda: clock.now)
            calls = (limiter.photos(key, 30) for _ in range(12))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(one, QuotaExceeded) for one in answers if one is not None)
            return answers.count(None)

        assert asyncio.run(scene()) == 10

    def test_a_quota_that_was_raised(self, limiter: Limiter, clock: Clock) -> None:
        asyncio.run(limiter.photos(key_with(clock, photos_per_day=10), 10))
        with pytest.raises(QuotaExceeded):
            asyncio.run(limiter.photos(key_with(clock, photos_per_day=10), 1))
        asyncio.run(limiter.photos(key_with(clock, photos_per_day=20), 10))

    def test_a_quota_that_was_lowered(
        self, limiter: Limiter, usage: UsageStore, clock: Clock
    ) -> None:
        """What was reserved under the old one is not sent, and is there when it is raised again."""
        high, low = (key_with(clock, photos_per_day=quota) for quota in (100_000, 10))
        asyncio.run(limiter.photos(high, 4))  # reserves 1,000
        asyncio.run(limiter.photos(low, 6))
        for count in (1, 5):
            with pytest.raises(QuotaExceeded, match="10 photos a day and has 0 left"):
                asyncio.run(limiter.photos(low, count))
        asyncio.run(limiter.photos(high, 1))
        limiter.release()
        assert usage.reserve("entrance", clock.now.date(), 1, 99_999, 100_000)[0] == 99_989

    def test_a_database_that_is_away(self, usage: UsageStore, clock: Clock) -> None:
        async def away(*_: Any) -> Any:
            raise StoreUnavailable("The database is away.")

        limiter = Limiter(usage, away, lambda: clock.seconds, lambda: clock.now)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                asyncio.run(limiter.photos(key_with(clock, photos_per_day=10), 1))

    def test_many_reserve_at_once_and_none_beyond_it(self, usage: UsageStore, clock: Clock) -> None:
        def reserve(_: int) -> int:
            return usage.reserve("entrance", clock.now.date(), 3, 7, 100)[0]

        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(reserve, range(60))) in (98, 99, 100)

    @pytest.mark.parametrize(
        ("failure", "said"),
        [(StoreUnavailable("away"), "photos of a quota were not reserved"), (KeyError("x"), "")],
    )
    def test_a_call_that_left_and_a_database_that_failed(
        self, usage: UsageStore, clock: Clock, caplog: pytest.LogCaptureFixture,
        failure: Exception, said: str,
    ) -> None:  # fmt: skip
        """Each failure is logged once, as what it is; a fault of the program by the event loop."""
        reported: list[dict[str, Any]] = []

        async def leave() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, one: reported.append(one))
            begun, end = asyncio.Event(), asyncio.Event()

            async def fail(*_: Any) -> Any:
                begun.set()
                await end.wait()
                raise failure

            limiter = Limiter(usage, fail, lambda: clock.seconds, lambda: clock.now)
            call = asyncio.create_task(limiter.photos(key_with(clock, photos_per_day=9), 1))
            await begun.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            end.set()
            await asyncio.wait(limiter._left)
            await asyncio.sleep(0)
            gc.collect()

        with caplog.at_level("WARNING", "likeness"):
            asyncio.run(leave())
            gc.collect()
        logged = [one.message for one in caplog.records if one.name == "likeness"]
        assert logged == [said] * bool(said)
        assert [one["exception"] for one in reported] == ([] if said else [failure])

    def test_old_days_are_forgotten(self, usage: UsageStore, clock: Clock) -> None:
        day = clock.now.date()
        usage.reserve("entrance", day, 5, 5, 5)
        usage.reserve("entrance", day + timedelta(days=KEPT_DAYS + 1), 5, 5, 5)
        assert usage.reserve("entrance", day, 5, 5, 5) == (5, 0)


def test_limits_are_stored_and_replaced(store: AccessKeyStore, registry: AccessRegistry) -> None:
    first = KeyLimits(requests_per_second=2.5, photos_per_day=10)
    _, token = store.create(NewKey("entrance", [Scope.IDENTIFY], limits=first))
    registry.refresh()
    found = registry.key_of(token)
    assert found is not None
    assert found.limits == first
    made, successor = store.rotate("entrance", timedelta(hours=1))
    assert made.limits == first
    assert len(store.limit("entrance", KeyLimits(concurrent_requests=4))) == 2
    registry.refresh()
    for one in (token, successor):
        found = registry.key_of(one)
        assert found is not None
        assert found.limits == KeyLimits(concurrent_requests=4)


def test_the_keys_of_a_name_share_their_limits(store: AccessKeyStore) -> None:
    old, _ = store.create(NewKey("entrance", [Scope.IDENTIFY]))
    store.create(NewKey("exit", [Scope.IDENTIFY]))
    new, _ = store.rotate("entrance", timedelta(hours=1))
    limited = store.limit(old.key_id, KeyLimits(photos_per_day=7))
    assert {key.key_id for key in limited} == {old.key_id, new.key_id}


def test_limits_of_a_newer_version_are_ignored() -> None:
    assert stored_limits({"photos_per_day": 5, "faces_per_moon": 1}) == KeyLimits(photos_per_day=5)
