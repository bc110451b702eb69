"""The snapshots of one database's indexes: one folder, one lock, one process that may change it."""

import shutil
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

from app.disk import files_in
from app.encryption.ring import KeyRing
from app.index.port import IndexedCollection
from app.index.snapshots.folder import IndexIdentity, SnapshotFolder, has_rows
from app.index.snapshots.manifest import summary
from app.index.snapshots.ownership import Ownership


class Snapshots:
    """Which collections have a snapshot; `SnapshotFolder` is one of them."""

    def __init__(
        self, folder: Path, database: str, ring: KeyRing | None, threads: Executor, least_rows: int
    ) -> None:
        """Indexes of fewer rows than `least_rows` have none."""
        self._folder = folder
        self._database = database
        self._ring = ring
        self._threads = threads
        self._least_rows = least_rows
        self._owner = Ownership(folder, self._sweep)

    @property
    def owned(self) -> bool:
        """Whether this process may change them."""
        return self._owner.held

    def own(self) -> bool:
        """Try to become the owner; returns whether this process is the owner."""
        return self._owner.own()

    def release(self) -> None:
        """Let another process own them."""
        self._owner.release()

    def of(self, record: IndexedCollection) -> SnapshotFolder:
        """The snapshot folder of one collection, which may not exist yet."""
        identity = IndexIdentity(
            self._database, record.key, record.embedding_space, record.dimension
        )
        folder = self._folder / str(record.key)
        return SnapshotFolder(folder, identity, self._ring, self._threads, self._owner)

    def keys(self) -> set[int]:
        """Collections that have one."""
        return {int(one.name) for one in files_in(self._folder) if one.name.isdecimal()}

    def has_rows(self, key: int) -> bool:
        """Whether a file with rows of the collection exists, written by any process."""
        return has_rows(self._folder / str(key))

    def reached(self, key: int) -> tuple[int, str] | None:
        """The revision, with its stamp, that a collection's snapshot stands at."""
        found = summary(self._folder / str(key))
        return None if found is None else (found.revision, found.stamp)

    def remove(self, key: int) -> None:
        """Remove a collection's snapshot, where this process is the owner or nobody is."""
        folder = self._folder / str(key)
        if folder.exists() and self.own():
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what owners before this one left: files that no manifest names, snapshots that
        cannot be read or were made with another encryption setting, and those of small indexes,
        which versions before 0.2 kept."""
        for key in self.keys():
            folder = self._folder / str(key)
            found = summary(folder)
            sealed = self._ring is not None
            if found is None or found.rows < self._least_rows or found.sealed != sealed:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            for file in files_in(folder):
                if file.name not in found.names:
                    with suppress(OSError):
                        file.unlink()
