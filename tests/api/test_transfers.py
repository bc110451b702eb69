"""Transfers of one kind: a new one ends the slowest, except where none may be ended."""

import asyncio
import time

import pytest

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


def test_a_deletion_is_never_ended_for_another() -> None:
    async def run() -> None:
        deletions = Transfers("deletions", 1, may_be_ended=False)
        first = await occupy(deletions)
        with pytest.raises(Overloaded), deletions.open():
            pass
        assert first.ended_by is None

    asyncio.run(run())
