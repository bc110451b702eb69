"""The GPU engine's part: copies of shards on a device, in half precision. It proposes candidates,
and exact scores decide.

Numbers of half precision are off by a 2048th part at most (IEEE 754, 11 bits), those of the probe
and those of the row, so by Cauchy and Schwarz a similarity of unit vectors is off by 2^-10, and a
little for numbers too small to be normal. The last row that the GPU proposes is therefore at most
that much better than it looks, and a floor above it is certain: a score is never above the cosine.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from app.errors import DeviceError
from app.index.certified.rows import Flags, Shard
from app.index.certified.search import ProbeSearch
from app.types import FloatArray

ROUNDING = 2.0**-10 + 2e-4
FIRST, MOST = 64, 2_048  # rows asked for; FAISS's GPU search gives no more

NewFlat = Callable[[int], Any]


@dataclass(frozen=True, slots=True, eq=False)
class _OnDevice:
    """A shard, its copy on the device, and which of its rows were alive then."""

    shard: Shard
    flat: Any
    alive: Flags


class GpuShards:
    """`ShardScanner` on a device. One thread of its own does all that touches the device."""

    def __init__(self, new_flat: NewFlat) -> None:
        """`new_flat` makes an empty inner-product index of half precision on the device."""
        self._new_flat = new_flat
        self._owner = ThreadPoolExecutor(1, "gpu-index")
        self._held: dict[int, _OnDevice] = {}

    def cover(self, shards: Sequence[Shard], searches: Sequence[ProbeSearch]) -> None:
        """Leave no row of the shards unseen that could be in an answer: on the device, or where
        that cannot be certain on the CPU."""
        probes = ProbeSearch.stacked(searches)
        for shard in shards:
            waiting, wanted = list(range(len(searches))), FIRST
            while waiting and wanted <= MOST:
                size = min(wanted, len(shard.rows))
                found = self._owner.submit(self._search, shards, shard, probes[waiting], size)
                estimates, rows = found.result()
                unsure = []
                for place, one in enumerate(waiting):
                    searches[one].score(shard, rows[place])
                    last = float(estimates[place][-1]) + ROUNDING
                    if size < len(shard.rows) and last > searches[one].best.floor:
                        unsure.append(one)
                waiting, wanted = unsure, wanted * 8
            for one in waiting:
                searches[one].cover(shard)

    def _search(
        self, shards: Sequence[Shard], shard: Shard, probes: FloatArray, size: int
    ) -> tuple[FloatArray, Any]:
        if id(shard) not in self._held:
            kept = {id(one) for one in shards}
            self._held = {key: held for key, held in self._held.items() if key in kept}
            self._held[id(shard)] = self._brought(shard)
        estimates, rows = self._held[id(shard)].flat.search(probes, size)
        return estimates, rows

    def _brought(self, shard: Shard) -> "_OnDevice":
        alive, vectors = shard.rows.alive.copy(), shard.rows.vectors
        if not alive.all():  # what was removed may still lie in a file that another process owns
            vectors = np.where(alive[:, np.newaxis], vectors, np.float32(0))
        flat = self._new_flat(shard.rows.dimension)
        flat.add(vectors)
        return _OnDevice(shard, flat, alive)

    def renew(self, shards: Sequence[Shard]) -> None:
        """Free the device's copies of those shards that lost rows since; the next search copies
        them again, without those rows."""
        self._owner.submit(self._free, [one for one in shards if self._lost_rows(one)]).result()

    def _lost_rows(self, shard: Shard) -> bool:
        held = self._held.get(id(shard))
        return held is not None and not np.array_equal(held.alive, shard.rows.alive)

    def forget(self, shards: Sequence[Shard]) -> None:
        """Free the device's copies of shards that are searched no more."""
        self._owner.submit(self._free, shards).result()

    def _free(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            self._held.pop(id(shard), None)

    def close(self) -> None:
        """Free the device."""
        self._owner.submit(self._held.clear).result()
        self._owner.shutdown()


def cuda_flat() -> NewFlat:
    """Indexes on the first CUDA device, proven by a search. Raises DeviceError."""
    if not hasattr(faiss, "GpuIndexFlatIP") or not faiss.get_num_gpus():
        raise DeviceError(
            "LIKENESS_INDEX_DEVICE=cuda asks for a CUDA device and FAISS's GPU build (the extra "
            "gpu); one of them is missing here. Install them, or unset it."
        )
    resources = faiss.StandardGpuResources()
    options = faiss.GpuIndexFlatConfig()
    options.useFloat16 = True

    def new_flat(dimension: int) -> Any:
        return faiss.GpuIndexFlatIP(resources, dimension, options)

    try:
        proof = new_flat(32)
        proof.add(np.eye(32, dtype=np.float32))
        _, rows = proof.search(np.eye(32, dtype=np.float32), 1)
    except RuntimeError as error:
        raise DeviceError(f"FAISS cannot search on the CUDA device: {error}") from error
    if not np.array_equal(rows[:, 0], np.arange(32)):
        raise DeviceError("FAISS's search on the CUDA device gives wrong answers.")
    return new_flat
