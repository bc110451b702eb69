"""An index on disk: what a process starts from instead of reading the whole database.

A folder holds one file for each shard, one for the write buffer, the rotation, and a manifest that
names them with the revision they stand at. Files are written beside, synced and renamed; the
manifest comes last. Whatever does not fit is noticed, and the index is built from the database.
"""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from app.disk import files_in, private_folder, write_whole
from app.encryption.files import CHUNK, FileSealer, open_file
from app.encryption.ring import KeyRing
from app.errors import DamagedData, EncryptionKeyMissing
from app.index.certified.codes import Bytes, CodedRows, CodeScan, Quantiser
from app.index.certified.rows import Rows, Shard
from app.index.port import Ids, Position
from app.index.snapshots.files import RowsFile, RowsFileLayout, SnapshotError, contents, parse
from app.index.snapshots.manifest import FORMAT, MANIFEST, checked, with_check
from app.index.snapshots.ownership import LOCK, Ownership
from app.locks import new_condition, new_lock
from app.types import FloatArray

PURPOSE = b"likeness index snapshot"
NO_KEYS: Ids = np.empty(0, np.int64)
FILE_TIMEOUT_S = 60.0  # how long an erasure waits for a file that is being written


@dataclass(frozen=True, slots=True)
class IndexIdentity:
    """Whose index it is; one of anybody else is not read."""

    database: str
    collection: int
    embedding_space: str
    dimension: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What a snapshot held, and the position that it stands at."""

    position: Position
    quantiser: Quantiser | None
    shards: list[Shard]
    write_buffer: Rows


@dataclass(frozen=True, slots=True)
class Captured:
    """What a snapshot is to hold: the shards, a copy of the write buffer's living rows sorted by
    key, and the position that they stand at."""

    quantiser: Quantiser | None
    shards: Sequence[Shard]
    write_buffer: Rows
    position: Position


class SnapshotFolder:
    """The snapshot of one index. One process at a time owns it and may change it; all may read.

    With a key ring the files are sealed; then single rows cannot be erased in place, and a file
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
        self._threads = threads
        self._owner = owner or Ownership(folder)
        self._read_as_owner = False
        self._in_step = False  # what lies there is what this object read or wrote as the owner
        self._discarded = False
        self._saving = new_lock("snapshot.saving")
        self._lock = new_condition("snapshot.files")
        # The file that rows lie in. Weak: what is searched no more is not kept for being in a file,
        # where nothing would take out of it what is removed.
        self._held = WeakKeyDictionary[Rows, str]()
        self._files: dict[str, RowsFile] = {}
        self._sealed: dict[str, Ids] = {}  # keys in each sealed file
        self._quantiser: Quantiser | None = None
        self._unsynced = False
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
        """Whether this process owns the folder, and an owner before it wrote what lies there."""
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
        names = set(self._held.values())
        for path in files_in(self._folder):
            if path.name not in {*names, LOCK}:
                path.unlink(missing_ok=True)
        self._files = {name: file for name, file in self._files.items() if name in names}
        self._sealed = {name: keys for name, keys in self._sealed.items() if name in names}
        for rows in list(self._held):
            self._erase(rows.keys[~rows.alive])
        self._in_step = True

    def discard(self) -> None:
        """Remove everything, unless another process is the owner, and never save here again. A save
        in progress is cancelled and removes what it wrote."""
        if self._folder.exists():
            self._owner.own()
        with self._lock:
            self._discarded = True
        if self._saving.acquire(timeout=FILE_TIMEOUT_S):
            try:
                self._remove_all()
            finally:
                self._saving.release()

    def clear(self) -> None:
        """Remove what is kept, where this process is the owner or nobody is. More may be kept
        later."""
        self.own()
        with self._saving:
            self._remove_all()

    def _remove_all(self) -> None:
        with self._lock:
            if self._folder.exists():
                if not self._owner.held:
                    return
                shutil.rmtree(self._folder, ignore_errors=True)
            self._files, self._sealed = {}, {}
            self._held.clear()
            self._in_step = self._owner.held and not self.has_rows()

    def reader(self) -> "SnapshotFolder":
        """The same folder, opened once more for reading alone."""
        return SnapshotFolder(self._folder, self._identity, self._ring, self._threads, self._owner)

    # --- read --------------------------------------------------------------------------------

    def load(self) -> Restored | None:
        """What is there, verified; None without a snapshot. Raises SnapshotError."""
        self._read_as_owner, self._in_step = self._owner.held, False
        text = self._manifest()
        if text is None:
            self._in_step = self._read_as_owner and not self.has_rows()
            return None
        try:
            return self._read(text)
        except SnapshotError:
            # Its owner may have written another one while this one was read.
            newer = self._manifest()
            if newer is None or newer == text:
                raise
            return self._read(newer)

    def _manifest(self) -> bytes | None:
        try:
            return (self._folder / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SnapshotError(f"its manifest cannot be read ({error.strerror})") from error

    def _read(self, text: bytes) -> Restored:
        try:
            return self._restore(checked(text))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SnapshotError(f"it cannot be read ({error})") from error
        except (DamagedData, EncryptionKeyMissing) as error:
            raise SnapshotError("it cannot be decrypted") from error

    def _restore(self, manifest: Mapping[str, Any]) -> Restored:
        if manifest["identity"] != asdict(self._identity) or manifest["format"] != FORMAT:
            raise SnapshotError("it belongs to another index")
        if manifest["sealed"] != (self._ring is not None):
            raise SnapshotError("it was made with another encryption setting")
        rotation = self._read_rotation(manifest["rotation"])
        quantiser = None if rotation is None else Quantiser(rotation)
        names = [entry["name"] for entry in manifest["files"]]
        tasks = [self._threads.submit(self._open, quantiser, one) for one in manifest["files"]]
        wait(tasks)  # also where one fails: nobody may read a file that its owner then changes
        opened = [task.result() for task in tasks]
        shards = [one for one in opened if isinstance(one, Shard)]
        write_buffers = [one for one in opened if isinstance(one, Rows)]
        if len(write_buffers) != 1:
            raise SnapshotError("its newest rows are missing")
        with self._lock:
            rows = [one.rows if isinstance(one, Shard) else one for one in opened]
            self._held = WeakKeyDictionary(zip(rows, names, strict=True))
            self._quantiser = quantiser
            if self._ring is not None:
                self._sealed = {n: r.keys[r.alive] for n, r in zip(names, rows, strict=True)}
        position = Position(manifest["revision"], manifest["stamp"])
        return Restored(position, quantiser, shards, write_buffers[0])

    def _open(self, quantiser: Quantiser | None, entry: Mapping[str, Any]) -> Shard | Rows:
        layout = RowsFileLayout(entry["rows"], self._identity.dimension, entry["coded"])
        facts = self._facts(entry["name"], layout)
        if self._ring is None:
            file = RowsFile(self._folder / entry["name"], layout)
            arrays = file.verified(facts)
            with self._lock:
                self._files[entry["name"]] = file
        else:
            arrays = parse(self._decrypt(entry["name"], layout), facts, layout)
        alive = np.array(arrays["alive"], np.bool_)
        rows = Rows(arrays["keys"], arrays["persons"], arrays["vectors"], alive)
        if not layout.coded:
            return rows
        if quantiser is None:
            raise SnapshotError("its rotation is missing")
        scan = CodeScan.of_packed(quantiser, arrays["codes"], layout.rows)
        codes = CodedRows(scan, np.array(arrays["projection"]), np.array(arrays["residual"]))
        if self._ring is not None:
            arrays["codes"][...] = 0  # the scan has a copy, from which the removed are erased
        return Shard.of_codes(rows, codes, entry["pilot_radius"])

    def _decrypt(self, name: str, layout: RowsFileLayout) -> Bytes:
        assert self._ring is not None, "plain files need no key"
        buffer = np.empty(layout.size, np.uint8)
        place = 0
        with (self._folder / name).open("rb") as file:
            for chunk in open_file(self._ring, file, PURPOSE, name.encode()):
                if place + len(chunk) > len(buffer):
                    raise SnapshotError("a file is too long")
                buffer[place : place + len(chunk)] = np.frombuffer(chunk, np.uint8)
                place += len(chunk)
        if place != len(buffer):
            raise SnapshotError("a file is too short")
        return buffer

    def _read_rotation(self, digest: str | None) -> FloatArray | None:
        if digest is None:
            return None
        data = (self._folder / f"rotation-{digest[:16]}").read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise SnapshotError("its rotation is damaged")
        size = self._identity.dimension
        return np.frombuffer(data, "<f4").astype(np.float32).reshape(size, size)

    # --- write -------------------------------------------------------------------------------

    def save(self, capture: Callable[[], Captured]) -> bool:
        """Keep the state that `capture` gives; shards that lie in a file already are not written
        again. Whether it was kept: not where this process is not the owner, where the snapshot was
        discarded, or where rows that went meanwhile took a sealed file along.

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
            self._quantiser = state.quantiser
        entries = [self._keep(one.rows, one.codes, one.pilot_radius) for one in state.shards]
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
        self._sync()
        with self._lock:
            if self._discarded or not names <= {*self._files, *self._sealed}:
                return False
            write_whole(self._folder / MANIFEST, [with_check(manifest)])
            self._hold(names)
            self._files = {name: file for name, file in self._files.items() if name in names}
            self._sealed = {name: keys for name, keys in self._sealed.items() if name in names}
            # At once: what is erased from here on is looked for in no other file.
            self._remove_others({*names, MANIFEST, LOCK, f"rotation-{(rotation or '')[:16]}"})
        return True

    def _keep(self, rows: Rows, codes: CodedRows | None, radius: float) -> dict[str, Any]:
        """What the manifest says of some rows, which lie in a file then."""
        name = self._name_of(rows)
        if name is None:
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

    def _name_of(self, rows: Rows) -> str | None:
        """The file that these rows lie in, if it is still there."""
        with self._lock:
            name = self._held.get(rows)
        # Another owner may have removed it meanwhile.
        return name if name and (self._folder / name).exists() else None

    def _hold(self, names: set[str]) -> None:
        """Forget which rows lie in other files than these."""
        held = [(rows, name) for rows, name in self._held.items() if name in names]
        self._held = WeakKeyDictionary(held)

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
        plain = contents(self._facts(name, layout), rows, alive, codes)
        if self._ring is None:
            write_whole(path, plain)
        else:
            write_whole(path, _seal(FileSealer(self._ring, PURPOSE, name.encode()), plain))
        with self._lock:
            gone = self._erased_meanwhile()
            self._held[rows] = name
            if self._ring is not None:
                self._sealed[name] = rows.keys[alive]
                self._remove_sealed(gone)
                return
            file = self._files[name] = RowsFile(path, layout)
            self._unsynced |= file.erase(gone, self._quantiser)
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

    def _facts(self, name: str, layout: RowsFileLayout) -> dict[str, Any]:
        return {**asdict(self._identity), "name": name, **asdict(layout), "format": FORMAT}

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
            self._erase(keys)

    def _erase(self, keys: Ids) -> None:
        for name, file in list(self._files.items()):
            try:
                self._unsynced |= file.erase(keys, self._quantiser)
            except FileNotFoundError:  # another owner removed it meanwhile
                del self._files[name]
        self._remove_sealed(keys)

    @property
    def may_lose_files(self) -> bool:
        """Whether rows that were removed lie in files that another process owns."""
        if self._owner.held:
            return False
        rows = list(self._held)
        return any(not one.alive.all() and not one.vectors.flags.writeable for one in rows)

    def copy_lost_files(self) -> None:
        """Rows that this process reads from a file which its owner has replaced: nobody erases what
        is removed from them, so they are copied once something is."""
        with self._lock:
            for rows, name in self._held.items():
                if rows.vectors.flags.writeable or rows.alive.all():
                    continue
                if not (self._folder / name).exists():
                    rows.copy_vectors()
            there = {name for name in self._files if (self._folder / name).exists()}
            self._files = {name: file for name, file in self._files.items() if name in there}

    def _remove_sealed(self, keys: Ids) -> None:
        """Remove sealed files that hold one of these templates, and the manifest that names them;
        they are written again."""
        stale = [name for name, held in self._sealed.items() if np.isin(keys, held).any()]
        for name in stale:
            (self._folder / MANIFEST).unlink(missing_ok=True)
            (self._folder / name).unlink(missing_ok=True)
            del self._sealed[name]
            self._hold({*self._sealed})

    def _sync(self) -> None:
        """Wait until what was erased is gone from the disk too."""
        with self._lock:
            if self._unsynced:
                for file in self._files.values():
                    with suppress(FileNotFoundError):  # another owner removed it meanwhile
                        file.sync()
                self._unsynced = False


def has_rows(folder: Path) -> bool:
    """Whether a snapshot's folder has any file of rows; one that cannot be read may have some."""
    try:
        return any(file.name.startswith("rows-") for file in files_in(folder))
    except OSError:
        return True


def _seal(sealer: FileSealer, pieces: Iterable[memoryview]) -> Iterator[bytes]:
    """The pieces as sealed chunks of equal length."""
    yield sealer.header
    waiting = bytearray()
    for piece in pieces:
        for start in range(0, len(piece), CHUNK):
            waiting += piece[start : start + CHUNK]
            while len(waiting) > CHUNK:
                yield sealer.seal_chunk(bytes(waiting[:CHUNK]))
                del waiting[:CHUNK]
    yield sealer.seal_chunk(bytes(waiting), last=True)
