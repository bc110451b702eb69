"""The indexes of one process: they share threads and lie in one folder."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss

from app.gallery.encryption.ring import KeyRing
from app.gallery.index.certified import CertifiedIndex, IndexShape
from app.gallery.index.gpu import GpuShards
from app.gallery.index.snapshot import IndexIdentity, SnapshotFolder
from app.gallery.ports import CollectionRecord

NEWBORN_S = 60  # a folder that may belong to a collection made after the others were listed


class IndexShelf:
    """Makes indexes and their snapshots. Without a `folder` nothing is kept on disk; with a key
    ring what is kept is sealed."""

    def __init__(
        self,
        threads: int,
        folder: Path | None = None,
        ring: KeyRing | None = None,
        shape: IndexShape | None = None,
        gpu: GpuShards | None = None,
    ) -> None:
        # Each works alone: FAISS spreads nothing further from within them.
        self._threads = ThreadPoolExecutor(
            threads, "index-scan", initializer=faiss.omp_set_num_threads, initargs=(1,)
        )
        self._folder = folder
        self._ring = ring
        self._shape = shape
        self._gpu = gpu

    def new_index(self, dimension: int) -> CertifiedIndex:
        """An empty index of unit vectors."""
        return CertifiedIndex(dimension, self._threads, self._shape, self._gpu)

    def snapshot(self, database: str, record: CollectionRecord) -> SnapshotFolder | None:
        """Where a collection's index is kept; `database` is the database's own id."""
        if self._folder is None:
            return None
        identity = IndexIdentity(database, record.key, record.embedding_space, record.dimension)
        folder = self._folder / database / str(record.key)
        return SnapshotFolder(folder, identity, self._ring, self._threads)

    def remove_others(self, database: str, collections: Iterable[int]) -> None:
        """Remove what is kept of collections that the database has no more: of those that some
        other process deleted, while none that knew them ran."""
        if self._folder is None or not (self._folder / database).is_dir():
            return
        known = {str(key) for key in collections}
        for folder in (self._folder / database).iterdir():
            young = time.time() - folder.stat().st_mtime < NEWBORN_S
            if folder.name not in known and not young:
                whose = IndexIdentity(database, 0, "", 0)
                SnapshotFolder(folder, whose, None, self._threads).discard()

    def close(self) -> None:
        """End the threads, free the device."""
        self._threads.shutdown()
        if self._gpu is not None:
            self._gpu.close()
