"""The indexes of one database, with snapshots in one folder or without any."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path

from app.disk import LOCK, Ownership, command_for_access, files_in, require_access
from app.encryption.ring import KeyRing
from app.errors import StartupError
from app.index.certified.index import CertifiedIndex
from app.index.certified.persistent import PersistentIndex
from app.index.certified.snapshots.folder import SnapshotFolder, has_rows
from app.index.certified.snapshots.reading import IndexIdentity, summary
from app.index.port import IndexedCollection, Position

NewIndex = Callable[[int], CertifiedIndex]


class IndexFolderError(StartupError):
    """The folder of the snapshots cannot be used; `detail` says why and what to do."""

    code, title = "index_folder_error", "The index's snapshots cannot be used"


class Snapshots:
    """Indexes with a snapshot each (`SnapshotFolder`), under one lock: one process may change
    them."""

    def __init__(
        self,
        new_index: NewIndex,
        folder: Path,
        database: str,
        ring: KeyRing | None,
        threads: Executor,
        *,
        least_rows: int,
    ) -> None:
        """`new_index` makes an index of a dimension. Those of fewer rows than `least_rows` have no
        snapshot. Raises IndexFolderError if there is a folder that this process cannot use."""
        _require_usable(folder)
        self._new_index = new_index
        self._folder = folder
        self._database = database
        self._ring = ring
        self._threads = threads
        self._least_rows = least_rows
        self._owner = Ownership(folder, self._sweep)

    def own(self) -> bool:
        """Try to become the owner; returns whether this process is the owner."""
        return self._owner.own()

    def release(self) -> None:
        """Let another process own them."""
        self._owner.release()

    def open(self, collection: IndexedCollection) -> PersistentIndex:
        """The index of a collection, with its snapshot's folder, which may not exist yet."""
        identity = IndexIdentity(
            self._database, collection.key, collection.embedding_space, collection.dimension
        )
        folder = self._folder / str(collection.key)
        snapshot = SnapshotFolder(folder, identity, self._ring, self._threads, self._owner)
        return PersistentIndex(lambda: self._new_index(collection.dimension), snapshot)

    def saved(self) -> set[int]:
        """Collections that have one."""
        return {int(one.name) for one in files_in(self._folder) if one.name.isdecimal()}

    def may_be_saved(self, key: int) -> bool:
        """Whether a file with rows of the collection exists, written by any process."""
        return has_rows(self._folder / str(key))

    def saved_position(self, key: int) -> Position | None:
        """The position that a collection's snapshot is at."""
        found = summary(self._folder / str(key))
        return None if found is None else found.position

    def remove(self, key: int) -> None:
        """Remove a collection's snapshot, where this process is the owner or no process is."""
        folder = self._folder / str(key)
        if self.own():
            shutil.rmtree(folder, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what owners before this one left: files that no manifest names, snapshots that
        cannot be read or were made with another encryption setting, and those of small indexes,
        which earlier versions kept."""
        for key in self.saved():
            folder = self._folder / str(key)
            found = summary(folder)
            encrypted = self._ring is not None
            if found is None or found.rows < self._least_rows or found.encrypted != encrypted:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            for file in files_in(folder):
                if file.name not in found.names:
                    with suppress(OSError):
                        file.unlink()


def _require_usable(folder: Path) -> None:
    """Raises IndexFolderError where this process could not read and erase what earlier ones have
    left in the folder, or not make it in a parent that exists."""
    try:
        there = next((one for one in (folder, folder.parent) if one.exists()), None)
        if there is None or not there.is_dir():
            return  # nothing is kept: an index is used without snapshots then
        require_access(there)
        for path in files_in(folder):
            if path.name == LOCK or path.is_dir():
                with suppress(FileNotFoundError):  # another process removes it now
                    require_access(path)
    except OSError as error:
        advice = "Correct that"
        if isinstance(error, PermissionError):
            command = command_for_access(folder.parent, Path(error.filename))
            advice = (
                f"Let user id {os.geteuid()}, under which Likeness runs, enter the folders above"
            )
            if command is not None:
                advice = (
                    f"Give user id {os.geteuid()}, under which Likeness runs, the right: sudo "
                    f"{command} (in a container: on the host, with the path of the folder that is "
                    "mounted there)"
                )
        raise IndexFolderError(
            f"The folder {folder.parent} cannot be read and written ({error.filename}: "
            f"{error.strerror}), so deleted faces could not be erased from it. {advice}, or delete "
            "the folder: the indexes are built again from the database."
        ) from error


class MemoryIndexes:
    """Indexes without snapshots: nothing is saved, so no process is in the way of another."""

    def __init__(self, new_index: NewIndex) -> None:
        self._new_index = new_index

    def open(self, collection: IndexedCollection) -> PersistentIndex:
        """The index of a collection."""
        return PersistentIndex(lambda: self._new_index(collection.dimension), None)

    def own(self) -> bool:
        """True."""
        return True

    def release(self) -> None:
        """Nothing to release."""

    def saved(self) -> set[int]:
        """None."""
        return set()

    def may_be_saved(self, key: int) -> bool:  # noqa: ARG002 (the port's)
        """False."""
        return False

    def saved_position(self, key: int) -> Position | None:  # noqa: ARG002
        """None."""
        return None

    def remove(self, key: int) -> None:
        """Nothing to remove."""
