"""The process of `likeness serve` that runs the networks for the processes that answer requests."""

import asyncio
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from app.cli import garbage
from app.cli.console import clear_errors, read_settings
from app.faces.loading import LocalLoader
from app.imaging import ImageLimits
from app.inference.machine import DescriptorLimit
from app.inference.packs import load_pack
from app.inference.remote.served import greeting_of
from app.inference.remote.server import NetworkServer
from app.inference.scheduler import CUDA_POLICY
from app.processes.link import Link
from app.processes.messages import METRICS
from app.processes.starting import divided
from app.services import cuda_options
from app.settings import Settings
from app.telemetry.logs import set_up_logs
from app.telemetry.metrics import BatchSizes


class NetworkProcess:
    """`app.processes.link.Served` without connections."""

    def __init__(self, batches: BatchSizes) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(batches)
        self.ended = asyncio.Event()
        self._signals = 0

    def heed_signals(self, link: Link) -> None:
        """SIGTERM asks the parent to replace this process. A manager of services may send it to all
        processes at a time, and those that answer requests still need this one then."""

        def heed() -> None:
            self._signals += 1
            if self._signals > 1:
                self.end_at_once()
            else:
                link.leave()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, heed)

    def new_protocol(self) -> asyncio.Protocol:
        raise RuntimeError("a connection was handed to the process that runs the networks")

    def drain(self, *, stopping: bool) -> None:
        """Nothing: others may still ask."""

    def end(self) -> None:
        """Those that asked have ended."""
        self.ended.set()

    def end_at_once(self) -> None:
        """The parent is gone, or a second signal came."""
        self.ended.set()

    async def metrics(self) -> str:
        """How large the batches are."""
        return generate_latest(self._registry).decode()


# Of a slot: its socket and its memory. Beside them: libraries, sockets, what starts.
FILES_A_SLOT, OTHER_FILES = 2, 256


def slots_of(settings: Settings, count: int, photos_a_core: int) -> int:
    """Slots that `count` processes may have together, and one more while one of them is replaced:
    one for each thread that runs networks, and for the examination of readiness."""
    each = settings.model_copy(update=divided(settings, count))
    threads = (each.workers or 1) * photos_a_core + (each.import_workers or 1) + 1
    return (count + 1) * threads


def serve_networks(
    link: Link, given: Mapping[str, Any], count: int, openings: socket.socket
) -> None:
    """Load the networks on their device and run them, for `count` processes, until the parent ends
    this one; slots are opened through `openings`."""
    settings = read_settings().model_copy(update=given)
    set_up_logs(settings.log_format, settings.log_level, with_process=True)
    slots = slots_of(settings, count, CUDA_POLICY.photos_a_core)
    with clear_errors(), ExitStack() as undo:
        DescriptorLimit.read().raised().require(
            FILES_A_SLOT * slots + OTHER_FILES,
            f"the process that runs the networks for {count} others",
        )
        asyncio.run(_serve(link, settings, openings, slots, undo))


async def _serve(
    link: Link, settings: Settings, openings: socket.socket, slots: int, undo: ExitStack
) -> None:
    pack = load_pack(settings.pack, settings.installed_packs)
    loader = LocalLoader(pack, undo, settings.device, cuda_options(settings), serves=True)
    pipeline = loader.pipeline(ImageLimits(), None)
    served = list(loader.served.values())
    greeting = greeting_of(pack, pipeline.provider, served)
    server = NetworkServer(greeting, served, openings, slots)
    process = NetworkProcess(BatchSizes(lambda: pipeline.batches))
    server.open()
    garbage.begin_serving()
    process.heed_signals(link)
    link.open(process, {METRICS: process.metrics}, pipeline.provider)
    try:
        await process.ended.wait()
    finally:
        server.close()
        link.close(await process.metrics())
