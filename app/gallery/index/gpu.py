"""Shards once more on a GPU, in half precision: it proposes, exact cosines decide.

Numbers of half precision are off by a 2048th part at most (IEEE 754, 11 bits), those of the probe
and those of the row, so by Cauchy and Schwarz a similarity of unit vectors is off by 2^-10, and a
little for numbers too small to be normal. The last row that the GPU proposes is therefore at most
that much better than it looks, and a floor above it is certain.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np

from app.errors import DeviceError
from app.gallery.index.rows import Shard
from app.gallery.index.search import ProbeSearch
from app.types import FloatArray

ROUNDING = 2.0**-10 + 2e-4
FIRST, MOST = 64, 2_048  # rows asked for; FAISS's GPU search gives no more

NewFlat = Callable[[int], Any]


class GpuShards:
    """Searches shards on a device. One thread of its own does all that touches the device."""

    def __init__(self, new_flat: NewFlat) -> None:
        """`new_flat` makes an empty inner-product index of half precision on the device."""
        self._new_flat = new_flat
        self._owner = ThreadPoolExecutor(1, "gpu-index")
        self._held: dict[int, tuple[Shard, Any]] = {}

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
            flat = self._new_flat(probes.shape[1])
            flat.add(shard.rows.vectors)
            self._held[id(shard)] = (shard, flat)
        estimates, rows = self._held[id(shard)][1].search(probes, size)
        return estimates, rows

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
