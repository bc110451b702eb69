"""The context of a call: the services, their pools, and the times of the call."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, Request, Response

from app.api.access import Access, access_of
from app.importing.jobs import ImportJobs
from app.recognition.analysis import (
    PhotoOutcome,
    StageTimes,
    analyse_images,
    analyse_one,
    faces_of,
)
from app.services import Services
from app.telemetry.logs import request_id

P = ParamSpec("P")
T = TypeVar("T")

# Writing the answer of one face takes about 20 us.
MANY_FACES = 64


class ClientLeft(Exception):
    """Nobody waits for the work any more."""


@contextmanager
def client_watch() -> Iterator[Callable[[], None]]:
    """Gives long work on a thread a function that raises ClientLeft once the call has left the
    block, as it does when its client disconnects."""
    left = threading.Event()

    def check() -> None:
        if left.is_set():
            raise ClientLeft

    try:
        yield check
    finally:
        left.set()


class CallContext:
    """One call. Its methods run work on the pools of `app.inference.scheduler`; the event loop only
    waits."""

    def __init__(self, request: Request) -> None:
        self._start = time.perf_counter()
        self._request = request
        self._request_id = request_id.get()
        self.times = StageTimes()
        self.services = _services(request)
        self.gallery = self.services.gallery
        self.store = self.gallery.store
        self._scheduler = self.services.scheduler

    @property
    def imports(self) -> ImportJobs:
        """The imports of this service."""
        jobs: ImportJobs = self._request.app.state.imports
        return jobs

    @property
    def access(self) -> Access:
        """What this call may do."""
        return access_of(self._request)

    async def read(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that reads the database."""
        return await self._scheduler.read(work, *args, **kwargs)

    async def write(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that writes to the database. Raises Overloaded."""
        return await self._scheduler.write(work, *args, **kwargs)

    async def delete(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that deletes."""
        return await self._scheduler.delete(work, *args, **kwargs)

    async def search(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that needs an index."""
        return await self._scheduler.search(work, *args, **kwargs)

    async def examine(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that looks through a whole collection."""
        return await self._scheduler.examine(work, *args, **kwargs)

    async def read_reports(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that reads reports of imports."""
        return await self._scheduler.read_reports(work, *args, **kwargs)

    def envelope(self) -> dict[str, Any]:
        """The members of an `Answer`; `total` is the time since the call reached its route. May be
        called on any thread."""
        total = (time.perf_counter() - self._start) * 1000
        times = {**self.times.milliseconds, "total": total}
        return {
            "request_id": self._request_id,
            "model": self._request.app.state.model,
            "timings_ms": {stage: round(spent, 2) for stage, spent in times.items()},
        }

    async def analysed(
        self,
        images: Sequence[bytes],
        max_faces: int | None,
        write: Callable[[Sequence[PhotoOutcome]], Response],
        *,
        embed: bool = True,
        liveness: bool = False,
    ) -> Response:
        """The answer that `write` makes of analysed photos: a single one's on the thread that has
        analysed it."""
        if len(images) == 1:
            return await analyse_one(
                self.services, self.times, images[0], max_faces, lambda image: write([image]),
                embed=embed, liveness=liveness,
            )  # fmt: skip
        outcomes = await analyse_images(
            self.services, self.times, images, max_faces, embed=embed, liveness=liveness
        )
        return await self.written(len(faces_of(outcomes)), lambda: write(outcomes))

    async def written(self, faces: int, write: Callable[[], Response]) -> Response:
        """The answer that `write` makes; off the event loop if it has many faces."""
        if faces <= MANY_FACES:
            return write()
        threads: Executor = self._request.app.state.parsing
        return await asyncio.get_running_loop().run_in_executor(threads, write)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def call_context(request: Request) -> CallContext:
    """Async, because FastAPI runs synchronous dependencies on a thread."""
    return CallContext(request)


Context = Annotated[CallContext, Depends(call_context)]
