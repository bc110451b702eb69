"""Waits for a database server that starts later than the service."""

import logging
import time
from collections.abc import Callable

from sqlalchemy import Engine

from app.store.backends import backend_of, shown_url
from app.telemetry.logs import log

RETRY_S = 1.0
LOG_EVERY_S = 10.0


def await_database(
    engine: Engine,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return as soon as the database's server accepts connections, or after `seconds`.

    It does not log in: the first real connection reports a wrong password or a missing database.
    Waiting is logged.
    """
    backend, end, logged_at = backend_of(engine), clock() + seconds, -LOG_EVERY_S
    while backend.is_unreachable(engine) and (now := clock()) < end:
        if now - logged_at >= LOG_EVERY_S:
            left = round(end - now)
            log(logging.WARNING, "the database server does not accept connections yet; waiting",
                database=shown_url(engine), seconds_left=left)  # fmt: skip
            logged_at = now
        sleep(RETRY_S)
