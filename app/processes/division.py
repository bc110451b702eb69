"""The settings of each process where several share what one service may use."""

import math
from typing import Any

from app.inference.machine import usable_cores, usable_memory
from app.settings import MIB, Settings

CORES_EACH = 4
# Fewer than these are not divided further.
LEAST_WORKERS = LEAST_PENDING = 2
LEAST_CONNECTIONS = 32
# For one large photo at least.
LEAST_DECODE_BYTES = 512 * MIB


def process_count(settings: Settings) -> int:
    """How many processes serve; `auto`: one for each four cores that may be used."""
    if settings.processes == "auto":
        return max(1, usable_cores() // CORES_EACH)
    return settings.processes


def divided(settings: Settings, count: int) -> dict[str, Any]:
    """What differs in the settings of each of `count` processes."""
    workers = settings.workers or usable_cores()
    memory = settings.max_index_bytes or usable_memory() // 2
    decode = settings.max_decode_bytes
    return {
        "workers": max(LEAST_WORKERS, math.ceil(workers / count)),
        # One process at a time imports, with its part of the whole.
        "import_workers": settings.import_workers or max(1, workers // 2),
        "max_pending": max(LEAST_PENDING, settings.max_pending // count),
        "max_pending_bytes": max(1, settings.max_pending_bytes // count),
        "max_decode_bytes": max(min(decode, LEAST_DECODE_BYTES), decode // count),
        "max_connections": max(LEAST_CONNECTIONS, settings.max_connections // count),
        "max_index_bytes": max(1, memory // count),
    }
