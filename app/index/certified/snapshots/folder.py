"""An index on disk: what a process starts from instead of reading the whole database.

A folder holds one file for each shard, one for the write buffer, the rotation, and a manifest that
names them with the revision they are at. Files are written beside, synced and renamed; the
manifest comes last. Anything that does not match is detected, and the index is built from the
database.
"""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.disk import LOCK, Ownership, files_in, private_folder, write_whole
from app.encryption.files import CHUNK, FileEncryptor
from app.encryption.ring import KeyRing
from app.index.certified.codes import CodedRows, Quantiser
from app.index.certified.rows import Rows
from app.index.certified.shards import Shard
from app.index.certified.snapshots.files import RowsFile, RowsFileLayout, contents
from app.index.certified.snapshots.held import HeldFiles
from app.index.certified.snapshots.reading import (
    FORMAT,
    MANIFEST,
    PURPOSE,
    IndexIdentity,
    Restored,
    SnapshotReader,
    facts_of,
    with_check,
)
from app.index.port import Ids, Position
from app.locks import new_condition, new_lock

NO_KEYS: Ids = np.empty(0, np.int64)
FILE_TIMEOUT_S = 60.0  # how long an erasure waits for a file that is being written


@dataclass(frozen=True, slots=True)
class Captured:
    """What a snapshot is to hold: the shards, a copy of the write buffer's remaining rows sorted by
    key, and the position that they are at."""

    quantiser: Quantiser | None
    shards: Sequence[Shard]
    write_buffer: Rows
    position: Position


class SnapshotFolder:
    """The snapshot of one index. One process at a time owns it and may change it; all may read.

    With a key ring the files are encrypted; then single rows cannot be erased in place, and a file
    that holds an erased row is removed as a whole.
    """

    def __init__(
        self,
        folder: Path,
        identity: IndexIdentity,
        ring: KeyRing | None,
        threads: Executor,
        owner: Ownership | None = None,
    ) -> None:
        """By default the right to change the folder is its own."""
        self._folder = folder
        self._identity = identity
        self._ring = ring
        self._owner = owner or Ownership(folder)
        self._read_as_owner = False
        self._in_step = False  # what is there is what this object read or wrote as the owner
        self._discarded = False
        self._saving = new_lock("snapshot.saving")
        self._lock = new_condition("snapshot.files")
        self._reader = SnapshotReader(folder, identity, ring, threads)
        self._files = HeldFiles(folder)
        self._in_work: Ids = NO_KEYS  # of the file that is being written
        self._erased: list[Ids] | None = None  # while a snapshot is written: what went since

    # --- who may write -----------------------------------------------------------------------

    def own(self) -> bool:
        """Try to become the owner. A discarded folder has no owner."""
        return not self._discarded and self._owner.own()

    @property
    def owned(self) -> bool:
        """Whether this process is the owner."""
        return self._owner.held

    def has_rows(self) -> bool:
        """Whether any file of rows exists, written by any process."""
        return has_rows(self._folder)

    @property
    def behind(self) -> bool:
        """Whether this process owns the folder, and an owner before it wrote what is there."""
        return self._owner.held and not self._in_step

    def accept(self) -> None:
        """Continue from the loaded files. Without this the next save or erasure removes them."""
        self._in_step = self._read_as_owner

    def _take_over(self) -> None:
        """Leave of what an owner before this one wrote only the files that this process has read,
        without the rows that are gone since. The next save makes a snapshot of it again."""
        if not self.behind:
            return
        (self._folder / MANIFEST).unlink(missing_ok=True)
        names = self._files.names()
        for path in files_in(self._folder):
            if path.name not in {*names, LOCK}:
                path.unlink(missing_ok=True)
        self._files.keep_only(names)
        for rows in self._files.rows():
            self._files.erase(rows.keys[~rows.alive])
        self._in_step = True

    def discard(self) -> None:
        """Remove everything, unless another process is the owner, and never save here again. A save
        in progress is cancelled and removes what it wrote."""
        if may_exist(self._folder):
            self._owner.own()
        with self._lock:
            self._discarded = True
        if self._saving.acquire(timeout=FILE_TIMEOUT_S):
            try:
                self._remove_all()
            finally:
                self._saving.release()

    def clear(self) -> None:
        """Remove what is kept, where this process is the owner or no process is. More may be kept
        later."""
        self.own()
        with self._saving:
            self._remove_all()

    def _remove_all(self) -> None:
        with self._lock:
            if may_exist(self._folder):
                if not self._owner.held:
                    return
                shutil.rmtree(self._folder, ignore_errors=True)
            self._files.clear()
            self._in_step = self._owner.held and not self.has_rows()

    # --- read --------------------------------------------------------------------------------

    def read(self) -> Restored | None:
        """What is there, verified, for looking at it only; None without a snapshot. Raises
        SnapshotError."""
        loaded = self._reader.load()
        return None if loaded is None else loaded.restored

    def load(self) -> Restored | None:
        """What is there, verified, to continue from; None without a snapshot. Raises
        SnapshotError."""
        self._read_as_owner, self._in_step = self._owner.held, False
        loaded = self._reader.load()
        if loaded is None:
            self._in_step = self._read_as_owner and not self.has_rows()
            return None
        with self._lock:
            self._files.add_loaded(loaded)
        return loaded.restored

    # --- write -------------------------------------------------------------------------------

    def save(self, capture: Callable[[], Captured]) -> bool:
        """Keep the state that `capture` gives; shards that are in a file already are not written
        again. Whether it was kept: not where this process is not the owner, where the snapshot was
        discarded, or where rows that went meanwhile took an encrypted file along.

        Rows that are erased while it is written are in no file when `erase` returns. Raises
        OSError; what was there before is kept then.
        """
        with self._saving:
            if not self.own():
                return False
            with self._lock:
                self._take_over()
                self._erased = []
            try:
                return self._save(capture())
            finally:
                with self._lock:
                    self._erased = None
                if self._discarded:
                    self._remove_all()

    def _save(self, state: Captured) -> bool:
        private_folder(self._folder)
        rotation = None if state.quantiser is None else self._write_rotation(state.quantiser)
        with self._lock:
            self._files.quantiser = state.quantiser
        entries = [self._keep(one.rows, one.codes, one.first_radius.radius) for one in state.shards]
        entries.append(self._keep(state.write_buffer, None, 0.0))
        names = {entry["name"] for entry in entries}
        manifest = {
            "format": FORMAT, "identity": asdict(self._identity),
            "revision": state.position.revision, "stamp": state.position.stamp,
            "sealed": self._ring is not None, "rotation": rotation, "files": entries,
        }  # fmt: skip
        # Erased on the disk before there is a manifest of a revision that does not name them.
        for shard in state.shards:
            self.erase(shard.rows.keys[~shard.rows.alive])
        with self._lock:
            self._files.sync()
        with self._lock:
            if self._discarded or not names <= self._files.there():
                return False
            write_whole(self._folder / MANIFEST, [with_check(manifest)])
            self._files.keep_only(names)
            # At once: what is erased from here on is looked for in no other file.
            self._remove_others({*names, MANIFEST, LOCK, f"rotation-{(rotation or '')[:16]}"})
        return True

    def _keep(self, rows: Rows, codes: CodedRows | None, radius: float) -> dict[str, Any]:
        """What the manifest says of some rows, which are in a file then."""
        with self._lock:
            name = self._files.name_of(rows)
        # Another owner may have removed it meanwhile.
        if name is None or not (self._folder / name).exists():
            name = f"rows-{uuid.uuid4().hex}"
            try:
                self._write(name, rows, codes)
            except BaseException:
                (self._folder / name).unlink(missing_ok=True)
                raise
            finally:
                with self._lock:
                    self._in_work = NO_KEYS
                    self._lock.notify_all()
        return {"name": name, "rows": len(rows), "coded": codes is not None, "pilot_radius": radius}

    def _write(self, name: str, rows: Rows, codes: CodedRows | None) -> None:
        """Write a file of these rows. An erasure of one of them waits until it is written."""
        path, layout = (
            self._folder / name,
            RowsFileLayout(len(rows), rows.dimension, codes is not None),
        )
        with self._lock:
            if self._discarded:
                return
            self._in_work = rows.keys
            alive = rows.alive.copy()
            alive[rows.find(self._erased_meanwhile())] = False
        plain = contents(facts_of(self._identity, name, layout), rows, alive, codes)
        if self._ring is None:
            write_whole(path, plain)
        else:
            write_whole(path, _encrypt(FileEncryptor(self._ring, PURPOSE, name.encode()), plain))
        with self._lock:
            gone = self._erased_meanwhile()
            if self._ring is not None:
                self._files.add_encrypted(name, rows, rows.keys[alive])
                self._files.erase_encrypted(gone)
                return
            file = RowsFile(path, layout)
            self._files.add_plain(name, rows, file, gone)
            if codes is not None:
                # From here on the file's pages serve, which the system may drop and read again.
                rows.vectors = file.arrays()["vectors"]

    def _erased_meanwhile(self) -> Ids:
        return np.concatenate([NO_KEYS, *(self._erased or [])])

    def _write_rotation(self, quantiser: Quantiser) -> str:
        data = quantiser.rotation.astype("<f4").tobytes()
        digest = hashlib.sha256(data).hexdigest()
        name = f"rotation-{digest[:16]}"
        if not (self._folder / name).exists():
            write_whole(self._folder / name, [data])
        return digest

    def _remove_others(self, keep: set[str]) -> None:
        for path in files_in(self._folder):
            if path.name not in keep:
                with suppress(OSError):
                    path.unlink()

    # --- forget ------------------------------------------------------------------------------

    def erase(self, keys: Ids) -> None:
        """Erase these templates from the files. Waits for a file with one of them that is being
        written. Raises OSError."""
        if not len(keys) and not self.behind:
            return
        with self._lock:
            if self._erased is not None:
                self._erased.append(keys)
            if not self._owner.held or self._discarded:
                return
            self._take_over()
            if not self._lock.wait_for(
                lambda: not np.isin(keys, self._in_work).any(), FILE_TIMEOUT_S
            ):
                raise TimeoutError(
                    f"a file of the index snapshot was not written within {FILE_TIMEOUT_S:g} s"
                )
            self._files.erase(keys)

    @property
    def may_lose_files(self) -> bool:
        """Whether rows that were removed are in files that another process owns."""
        return not self._owner.held and self._files.has_removed()

    def copy_lost_files(self) -> None:
        """Copy rows that this process reads from a file which its owner has replaced."""
        with self._lock:
            self._files.copy_lost()


def may_exist(folder: Path) -> bool:
    """Whether a folder is there; one that cannot be looked at may be."""
    try:
        return folder.exists()
    except OSError:
        return True


def has_rows(folder: Path) -> bool:
    """Whether a snapshot's folder has any file of rows; one that cannot be read may have some."""
    try:
        return any(file.name.startswith("rows-") for file in files_in(folder))
    except OSError:
        return True


def _encrypt(encryptor: FileEncryptor, pieces: Iterable[memoryview]) -> Iterator[bytes]:
    """The pieces as encrypted chunks of equal length."""
    yield encryptor.header
    waiting = bytearray()
    for piece in pieces:
        for start in range(0, len(piece), CHUNK):
            waiting += piece[start : start + CHUNK]
            while len(waiting) > CHUNK:
                yield encryptor.encrypt_chunk(bytes(waiting[:CHUNK]))
                del waiting[:CHUNK]
    yield encryptor.encrypt_chunk(bytes(waiting), last=True)
