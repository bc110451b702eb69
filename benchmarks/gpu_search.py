"""How long a scan of many rows takes, alone and with several probes, on a device or by FAISS."""

import itertools
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from gpu_tables import show_table, times_of
from numpy.typing import NDArray

from app.errors import DeviceError
from app.index.device_rows import CudaDevice
from app.settings import Device

DIMENSION, TOP = 512, 64
CHUNK = 100_000
# Fewer rows than this are no gallery to time.
FEWEST = 10_000


def search(rows: int, device: Device, queries: int) -> None:
    """Of as many of `rows` as fit."""
    scan, fitting = _largest(rows, device)
    if scan is None:
        return
    probes = _unit(np.random.default_rng(9), max(queries, 64))
    table = []
    cases = ((1, TOP), (1, 512), (1, 4_096), (1, 16_384), (8, TOP), (64, TOP))
    for batch, most in cases if device is Device.CUDA else ((1, TOP), (64, TOP)):
        count = queries if batch == 1 else max(5, queries // 10)
        spent = 1000 * times_of(_searches(scan, probes, batch, most), count)
        p50, p99 = np.percentile(spent, [50, 99])
        table.append([str(batch), str(most), f"{p50:.2f}", f"{p99:.2f}", str(count)])
    precision = "float32" if device is Device.CPU else "fp16"
    columns = ("probes at once", "nearest", "p50 ms", "p99 ms", "searches")
    show_table(f"{fitting:,} x {DIMENSION}, {precision}", columns, table)


Search = Callable[[NDArray[np.float32], int], Any]


def _searches(
    search: Search, probes: NDArray[np.float32], batch: int, most: int
) -> Callable[[], Any]:
    """A search that takes the next probes each time it is called."""
    turn = itertools.count()

    def next_search() -> Any:
        start = next(turn) * batch % (len(probes) - batch + 1)
        return search(probes[start : start + batch], most)

    return next_search


def _largest(rows: int, device: Device) -> tuple[Search | None, int]:
    """A search of as many rows as fit, half as many at each try."""
    while rows >= FEWEST:
        try:
            return _filled(rows, device), rows
        except (RuntimeError, MemoryError, DeviceError) as error:
            reason = (str(error).strip().splitlines() or ["no memory"])[-1]
        # Only here are the error and what it held of the device let go.
        print(f"{rows:,} rows do not fit, half of them are tried ({reason})\n")
        rows //= 2
    print(f"Search: skipped, not even {FEWEST:,} rows fit\n")
    return None, 0


def _filled(rows: int, device: Device) -> Search:
    """One chunk and then another, again and again, for time; the first must find itself."""
    chunk = _unit(np.random.default_rng(1), min(CHUNK, rows))
    others = np.roll(chunk, 1, axis=1)
    if device is Device.CPU:
        index = faiss.IndexFlatIP(DIMENSION)
        for start in range(0, rows, CHUNK):
            index.add((others if start else chunk)[: rows - start])
        search: Search = index.search
    else:
        held = CudaDevice(max_bytes=1 << 50).new_rows(rows, DIMENSION)
        first, other = chunk.astype(np.float16), others.astype(np.float16)
        for start in range(0, rows, CHUNK):
            held.write(start, (other if start else first)[: rows - start])

        def search(probes: NDArray[np.float32], most: int) -> Any:
            return held.search(probes.astype(np.float16), rows, most)

    _, found = search(chunk[:64], TOP)
    if not np.array_equal(found[:, 0], np.arange(64)):
        raise SystemExit(f"The search of {rows:,} rows does not find its own rows.")
    return search


def _unit(random: np.random.Generator, count: int) -> NDArray[np.float32]:
    vectors = random.standard_normal((count, DIMENSION), np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
