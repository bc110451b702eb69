"""Transfers of one kind: a new one ends the slowest, except where none may be ended."""

import asyncio
import time

import pytest

from app.api.bodies import SteadyReceive
from app.api.transfers import GRACE_S, Transfer, Transfers
from app.errors import Overloaded, RequestTimeout


async def occupy(transfers: Transfers) -> Transfer:
    """A transfer that has lasted long enough to be ended, in a task of its own."""
    begun: asyncio.Future[Transfer] = asyncio.get_running_loop().create_future()

    async def transfer() -> None:
        with transfers.open() as opened:
            opened.since = time.monotonic() - 2 * GRACE_S
            begun.set_result(opened)
            await asyncio.sleep(60)

    _running.add(asyncio.create_task(transfer()))
    return await begun


_running: set[asyncio.Task[None]] = set()


def test_a_new_transfer_ends_the_slowest() -> None:
    async def run() -> None:
        transfers = Transfers("uploads", 1)
        slow = await occupy(transfers)
        with transfers.open():
            assert isinstance(slow.ended_by, RequestTimeout)

    asyncio.run(run())


def test_one_that_has_arrived_is_not_ended_for_its_rate() -> None:
    """What was received is being stored: 408 would say that it was not."""

    async def run() -> None:
        transfers = Transfers("uploads", 1)
        first = await occupy(transfers)

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"end", "more_body": False}

        await SteadyReceive(receive, first, 1_000)()
        with pytest.raises(Overloaded), transfers.open():
            pass
        assert first.ended_by is None

    asyncio.run(run())


def test_a_deletion_is_never_ended_for_another() -> None:
    async def run() -> None:
        deletions = Transfers("deletions", 1, may_be_ended=False)
        first = await occupy(deletions)
        with pytest.raises(Overloaded), deletions.open():
            pass
        assert first.ended_by is None

    asyncio.run(run())


def test_a_piece_that_fits_costs_no_look_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body has many pieces, each of which is counted on the event loop."""

    async def run() -> None:
        transfers = Transfers("bodies", 8, 100, lambda: 0)
        (await occupy(transfers)).held = 1
        monkeypatch.setattr(Transfer, "rate", lambda *_: pytest.fail("rates were compared"))
        with transfers.open() as new:
            transfers.hold(new, 99)
            assert new.held == 99

    asyncio.run(run())


def test_none_is_ended_for_a_body_that_would_not_fit_even_then() -> None:
    async def run() -> None:
        transfers = Transfers("bodies", 8, 100, lambda: 100)
        others = [await occupy(transfers) for _ in range(3)]
        for other in others:
            other.held = 1
        with transfers.open() as new, pytest.raises(Overloaded, match="memory"):
            transfers.hold(new, 1)
        assert [other.ended_by for other in others] == [None] * 3

    asyncio.run(run())


def test_only_as_many_are_ended_as_a_body_needs() -> None:
    async def run() -> None:
        transfers = Transfers("bodies", 8, 100, lambda: 10)
        nothing, slow, fast = [await occupy(transfers) for _ in range(3)]
        slow.held, fast.held, fast.moved = 50, 40, 1000
        with transfers.open() as new:
            transfers.hold(new, 30)
        assert isinstance(slow.ended_by, RequestTimeout)
        assert nothing.ended_by is None
        assert fast.ended_by is None

    asyncio.run(run())
