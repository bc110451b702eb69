"""The certified engine: makes the indexes of one process, which share threads and a folder."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss

from app.encryption.ring import KeyRing
from app.index.certified.index import CertifiedIndex
from app.index.certified.rows import IndexShape
from app.index.certified.search import ShardScanner, ThreadScanner
from app.index.certified.snapshots.catalog import MemoryIndexes, Snapshots
from app.index.device_rows import DeviceGalleries
from app.index.gpu import DeviceScanner
from app.index.port import PRECISION

# The rows that the CPU compares one by one in each search are few beside a device.
GPU_SHAPE = IndexShape(encode_at=2_048, merge_at=64)


class IndexFactory:
    """`app.index.engine.SearchEngine` over certified indexes. Without a `folder` nothing is kept on
    disk; with a key ring what is kept is encrypted. Open indexes may take `max_bytes` of memory
    together."""

    precision = PRECISION

    def __init__(
        self,
        threads: int,
        folder: Path | None = None,
        ring: KeyRing | None = None,
        shape: IndexShape | None = None,
        gpu: DeviceGalleries | None = None,
        *,
        max_bytes: int = sys.maxsize,
    ) -> None:
        # Each works alone: FAISS spreads nothing further from within them.
        self._threads = ThreadPoolExecutor(
            threads, "index-scan", initializer=faiss.omp_set_num_threads, initargs=(1,)
        )
        self._scanner = ThreadScanner(self._threads, threads)
        self._folder = folder
        self._ring = ring
        self._shape = shape or (IndexShape() if gpu is None else GPU_SHAPE)
        self.max_bytes = max_bytes
        self._gpu = gpu

    def new_index(self, dimension: int) -> CertifiedIndex:
        """An empty index of unit vectors."""
        scanner: ShardScanner = self._scanner
        if self._gpu is not None:
            scanner = DeviceScanner(self._gpu, dimension, self._scanner)
        return CertifiedIndex(dimension, self._threads, self._shape, scanner)

    @property
    def least_saved(self) -> int:
        """Templates of the smallest index that is worth a snapshot."""
        return self._shape.least_kept

    def catalog(self, database: str) -> Snapshots | MemoryIndexes:
        """The indexes of a database, which is named by its own id."""
        if self._folder is None:
            return MemoryIndexes(self.new_index)
        folder = self._folder / database
        least_rows = self._shape.least_kept
        return Snapshots(
            self.new_index, folder, database, self._ring, self._threads, least_rows=least_rows
        )

    def expected_memory(self, templates: int, dimension: int) -> int:
        """Bytes of memory that an index of so many templates will take, about."""
        coded = dimension // 4 + 64
        in_memory = self._folder is None or self._ring is not None
        return templates * (coded + 4 * dimension * in_memory)

    def close(self) -> None:
        """End the threads, free the device."""
        self._threads.shutdown()
        if self._gpu is not None:
            self._gpu.close()
