"""What checking an access key costs a request: the middleware alone, and the whole call.

    python benchmarks/access.py

Needs nothing that runs; prints medians of interleaved rounds, in microseconds.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from app.access.keys import NewKey, Scope
from app.access.registry import AccessRegistry
from app.access.store import AccessKeyStore
from app.api.access import AccessControl
from app.api.main import ROUTERS
from app.store.backends import create_engine
from app.store.database import Database
from app.store.schema import migrate
from app.telemetry.metrics import Metrics

ROUNDS, CALLS, KEYS = 50, 200, 100
PEPPER = bytes(32)


async def _nothing(_scope: Any, _receive: Any, _send: Any) -> None: ...


async def _timed(control: Any, headers: list[tuple[bytes, bytes]]) -> float:
    """Microseconds a request."""
    started = time.perf_counter()
    for _ in range(CALLS):
        path = "/v1/collections/default/persons/ada"
        scope = {"type": "http", "path": path, "method": "GET", "headers": headers}
        await control(scope, None, None)
    return (time.perf_counter() - started) / CALLS * 1e6


async def _measure(folder: Path) -> None:
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    store = AccessKeyStore(Database(engine), PEPPER)
    empty = AccessControl(_nothing, AccessRegistry(store, PEPPER), Metrics(), ROUTERS)
    tokens = [store.create(NewKey(f"key-{number}", [*Scope]))[1] for number in range(KEYS)]
    registry = AccessRegistry(store, PEPPER)
    keyed = AccessControl(_nothing, registry, Metrics(), ROUTERS)
    headers = [(b"authorization", f"Bearer {tokens[KEYS // 2]}".encode())]
    open_us, keyed_us = [], []
    for _ in range(ROUNDS):
        empty._registry.refresh = lambda: None  # type: ignore[method-assign] # stays without keys
        registry.refresh()
        open_us.append(await _timed(empty, headers))
        keyed_us.append(await _timed(keyed, headers))
    before, after = statistics.median(open_us), statistics.median(keyed_us)
    print(f"without keys {before:.1f} us, with {KEYS} keys {after:.1f} us a request")


def main() -> None:
    """Measure in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder)))


if __name__ == "__main__":
    main()
