"""What checking an access key costs a request: the middleware alone, and the whole call.

    python benchmarks/access.py

Needs nothing that runs; prints medians of interleaved rounds, in microseconds of CPU time.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from app.access.keys import NewKey, Scope
from app.access.limiter import Limiter
from app.access.probing import ProbingMonitor
from app.access.refused import CallLog, RefusedCalls
from app.access.registry import AccessRegistry
from app.access.store import AccessKeyStore, UsageStore
from app.api.access import AccessControl
from app.api.main import ROUTERS
from app.store.backends import create_engine
from app.store.database import Database
from app.store.schema import migrate
from app.telemetry.metrics import Metrics

ROUNDS, CALLS, KEYS = 50, 200, 100
PEPPER = bytes(32)


async def _nothing(_scope: Any, _receive: Any, _send: Any) -> None: ...


async def _unused(*_work: Any) -> Any:
    raise AssertionError("keys without a quota write nothing")


async def _timed(control: Any, headers: list[tuple[bytes, bytes]]) -> float:
    """Microseconds of CPU time per request."""
    started = time.thread_time()
    for _ in range(CALLS):
        path = "/v1/collections/default/persons/ada"
        scope = {"type": "http", "path": path, "method": "GET", "headers": headers}
        await control(scope, None, None)
    return (time.thread_time() - started) / CALLS * 1e6


def _control(url: str, keys: int) -> tuple[AccessControl, AccessRegistry, list[str]]:
    """Access control over a new database with so many keys, and their tokens."""
    engine = create_engine(url)
    migrate(engine)
    store = AccessKeyStore(Database(engine), PEPPER)
    tokens = [store.create(NewKey(f"key-{number}", [*Scope]))[1] for number in range(keys)]
    registry = AccessRegistry(store, PEPPER)
    control = AccessControl(
        _nothing,
        registry=registry,
        limiter=Limiter(UsageStore(Database(engine)), _unused, time.monotonic),
        probing=ProbingMonitor(1000, 3600, print, time.monotonic),
        refused=RefusedCalls(CallLog(Database(engine))),
        oidc=None,
        metrics=Metrics(),
        routers=ROUTERS,
    )
    return control, registry, tokens


async def _measure(folder: Path) -> None:
    empty, no_keys, _ = _control(f"sqlite:///{folder / 'empty.db'}", 0)
    keyed, registry, tokens = _control(f"sqlite:///{folder / 'keyed.db'}", KEYS)
    headers = [(b"authorization", f"Bearer {tokens[KEYS // 2]}".encode())]
    open_us, keyed_us = [], []
    for _ in range(ROUNDS):
        no_keys.refresh()
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
