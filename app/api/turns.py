"""Lets requests begin one after another.

Sixty requests that arrive together would otherwise begin in the same round of the event loop, and
nothing else, a health check for example, would be served until all of them have begun.
"""

import asyncio
from collections import deque


class Turns:
    """One request begins in each round of the event loop, in the order of arrival."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait until this request may begin; at once if no other begins in this round."""
        loop = asyncio.get_running_loop()
        if self._taken:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._taken = True
            loop.call_soon(self._give_next)

    def _give_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # its client has not left
                turn.set_result(None)
                asyncio.get_running_loop().call_soon(self._give_next)
                return
        self._taken = False
