"""Tasks that run until the service ends, and those that a cancelled call still waits for."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from app.telemetry.logs import log

T = TypeVar("T")


def start_task(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task that runs until it is cancelled. An error that ends it is logged under `name`;
    asyncio alone would keep it to itself for as long as the task is referred to."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_error)
    return task


def _log_error(task: asyncio.Task[None]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if isinstance(error, Exception):  # asyncio raises the others
        log(logging.ERROR, "a task of the service has ended", error, task=task.get_name())


async def ended(task: asyncio.Task[T]) -> T:
    """What a task returns. If the call is cancelled, that is raised only when the task has ended:
    a thread cannot be stopped, and what it makes must be known to be removed."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()
