"""The photos of one request, side by side."""

import asyncio
import threading
from pathlib import Path

import pytest

from app.errors import Overloaded
from app.recognition.analysis import each_photo, side_by_side
from app.services import build_services
from app.settings import Settings
from app.types import CooperativeTask
from tests.waiting import PATIENCE_S


def test_photos_of_a_failed_call_leave_the_queue(tmp_path: Path) -> None:
    services = build_services(Settings(data_dir=tmp_path, workers=1))
    release, begun = threading.Event(), list[bytes]()

    def work(photo: bytes) -> CooperativeTask[None]:
        begun.append(photo)
        if photo == b"0":
            raise Overloaded("There was no memory for this photo.")
        release.wait(PATIENCE_S)
        yield

    async def calls() -> None:
        with pytest.raises(Overloaded):
            await each_photo(services, [b"%d" % number for number in range(32)], work)
        release.set()
        await each_photo(services, [b"next"] * 32, work)  # takes turns with what is left

    try:
        asyncio.run(calls())
    finally:
        release.set()
        services.close()
    # Of the others at most those that began before the failure was known.
    assert len(set(begun) - {b"0", b"next"}) < 5


def test_the_other_parts_have_ended_when_the_first_error_is_raised() -> None:
    ended: list[str] = []

    async def long(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise Overloaded("full")

    async def call() -> None:
        with pytest.raises(Overloaded):
            await side_by_side([long("a"), fail(), long("b")])
        assert ended == ["a", "b"]

    asyncio.run(call())


def test_a_cancelled_request_ends_its_parts() -> None:
    ended: list[str] = []

    begun = asyncio.Event()

    async def long() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("a")

    async def call() -> None:
        request = asyncio.create_task(side_by_side([long()]))
        await begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert ended == ["a"]

    asyncio.run(call())
