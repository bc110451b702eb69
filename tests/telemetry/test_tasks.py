"""Tasks that nobody awaits."""

import asyncio

import pytest

from app.telemetry.tasks import start_task


async def broken() -> None:
    raise RuntimeError("the inside")


def test_an_error_that_ends_a_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        failed = start_task(broken(), "watching")
        cancelled = start_task(asyncio.sleep(60), "sleeping")
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait({failed, cancelled})

    with caplog.at_level("ERROR", logger="likeness"):
        asyncio.run(run())
    (record,) = caplog.records
    assert record.message == "a task of the service has ended"
    assert record.fields == {"task": "watching"}  # type: ignore[attr-defined]
    assert record.exc_info is not None
