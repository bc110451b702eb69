import asyncio

import pytest

from app.api.turns import Turns


class Rounds:
    """Requests, and in which round of the event loop each has begun."""

    def __init__(self, count: int) -> None:
        self.turns = Turns()
        self.begun: list[tuple[int, int]] = []
        self.round = 0
        self.tasks = [asyncio.create_task(self._begin(number)) for number in range(count)]

    async def _begin(self, number: int) -> None:
        await self.turns.take()
        self.begun.append((self.round, number))

    async def all_done(self) -> None:
        while not all(task.done() for task in self.tasks):
            await asyncio.sleep(0)
            self.round += 1


def test_requests_that_arrive_together_begin_one_a_round_in_their_order() -> None:
    async def run() -> Rounds:
        rounds = Rounds(60)
        await rounds.all_done()
        return rounds

    begun = asyncio.run(run()).begun
    assert [number for _, number in begun] == list(range(60))
    assert len({round_ for round_, _ in begun}) == 60


def test_a_lone_request_begins_at_once() -> None:
    async def run() -> None:
        turns = Turns()
        for _ in range(3):
            taking = turns.take()
            with pytest.raises(StopIteration):
                taking.send(None)  # it waits for nothing
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_one_whose_client_leaves_holds_up_nobody() -> None:
    async def run() -> list[int]:
        rounds = Rounds(5)
        await asyncio.sleep(0)  # all of them wait, but the first
        for number in (1, 3, 4):
            rounds.tasks[number].cancel()
        await rounds.all_done()
        await rounds.turns.take()
        return [number for _, number in rounds.begun]

    assert asyncio.run(run()) == [0, 2]
