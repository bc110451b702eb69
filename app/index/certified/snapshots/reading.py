"""The manifest of a snapshot (which files it is made of, and the revision they are at), and the
reading of a snapshot, which verifies everything before it is used.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Executor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.encryption.files import decrypt_file
from app.encryption.ring import KeyRing
from app.errors import DamagedData, EncryptionKeyMissing
from app.index.certified.codes import Bytes, CodedRows, CodeScan, Quantiser
from app.index.certified.rows import Rows
from app.index.certified.shards import Shard
from app.index.certified.snapshots.files import RowsFile, RowsFileLayout, SnapshotError, parse
from app.index.port import Position
from app.types import FloatArray

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class IndexIdentity:
    """Which index it is; that of any other is not read."""

    database: str
    collection: int
    embedding_space: str
    dimension: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a manifest says without the files: their names, its own among them, the rows that they
    hold, and the position that they are at."""

    names: frozenset[str]
    rows: int
    position: Position
    encrypted: bool


def summary(folder: Path) -> Summary | None:
    """Of the snapshot in a folder; None where there is none, or none that can be read."""
    try:
        content = checked((folder / MANIFEST).read_bytes())
        files = content["files"]
        names = {MANIFEST, f"rotation-{(content['rotation'] or '')[:16]}"}
        names |= {entry["name"] for entry in files}
        rows = sum(entry["rows"] for entry in files)
        position = Position(int(content["revision"]), content["stamp"])
        return Summary(frozenset(names), int(rows), position, content["sealed"])
    except (OSError, SnapshotError, ValueError, KeyError, TypeError):
        return None


def with_check(content: Mapping[str, Any]) -> bytes:
    """A manifest's file."""
    text = json.dumps(content, sort_keys=True)
    check = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"content": content, "sha256": check}, sort_keys=True).encode()


def checked(text: bytes) -> Mapping[str, Any]:
    """The content of a manifest. Raises SnapshotError."""
    try:
        whole = json.loads(text)
        content: Mapping[str, Any] = whole["content"]
        canonical = json.dumps(content, sort_keys=True).encode()
        if hashlib.sha256(canonical).hexdigest() == whole["sha256"]:
            return content
    except (ValueError, KeyError, TypeError) as error:
        raise SnapshotError("its manifest is incomplete") from error
    raise SnapshotError("its manifest is damaged")


PURPOSE = b"likeness index snapshot"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a snapshot held, and the position that it is at."""

    position: Position
    quantiser: Quantiser | None
    shards: list[Shard]
    write_buffer: Rows


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """What one file holds; `file` is None where it is encrypted, and was read."""

    name: str
    content: Shard | Rows
    file: RowsFile | None

    @property
    def rows(self) -> Rows:
        """The rows in it."""
        return self.content.rows if isinstance(self.content, Shard) else self.content


@dataclass(frozen=True, slots=True)
class LoadedSnapshot:
    """A snapshot and the files that it was read from."""

    restored: Restored
    files: list[OpenedFile]


class SnapshotReader:
    """Reads the snapshot in a folder, which another process may change meanwhile."""

    def __init__(
        self, folder: Path, identity: IndexIdentity, ring: KeyRing | None, threads: Executor
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._ring = ring
        self._threads = threads

    def load(self) -> LoadedSnapshot | None:
        """What is there, verified; None without a snapshot. Raises SnapshotError."""
        text = self._manifest()
        if text is None:
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

    def _read(self, text: bytes) -> LoadedSnapshot:
        try:
            return self._restore(checked(text))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise SnapshotError(f"it cannot be read ({error})") from error
        except (DamagedData, EncryptionKeyMissing) as error:
            raise SnapshotError("it cannot be decrypted") from error

    def _restore(self, manifest: Mapping[str, Any]) -> LoadedSnapshot:
        if manifest["identity"] != asdict(self._identity) or manifest["format"] != FORMAT:
            raise SnapshotError("it belongs to another index")
        if manifest["sealed"] != (self._ring is not None):
            raise SnapshotError("it was made with another encryption setting")
        rotation = self._read_rotation(manifest["rotation"])
        quantiser = None if rotation is None else Quantiser(rotation)
        tasks = [self._threads.submit(self._open, quantiser, one) for one in manifest["files"]]
        wait(tasks)  # even if one fails: nobody may read a file that its owner then changes
        files = [task.result() for task in tasks]
        shards = [one.content for one in files if isinstance(one.content, Shard)]
        write_buffers = [one.content for one in files if isinstance(one.content, Rows)]
        if len(write_buffers) != 1:
            raise SnapshotError("its newest rows are missing")
        position = Position(manifest["revision"], manifest["stamp"])
        return LoadedSnapshot(Restored(position, quantiser, shards, write_buffers[0]), files)

    def _open(self, quantiser: Quantiser | None, entry: Mapping[str, Any]) -> OpenedFile:
        name, layout = (
            entry["name"],
            RowsFileLayout(entry["rows"], self._identity.dimension, entry["coded"]),
        )
        facts, file = facts_of(self._identity, name, layout), None
        if self._ring is None:
            file = RowsFile(self._folder / name, layout)
            arrays = file.verified(facts)
        else:
            arrays = parse(self._decrypt(name, layout), facts, layout)
        alive = np.array(arrays["alive"], np.bool_)
        rows = Rows(arrays["keys"], arrays["persons"], arrays["vectors"], alive)
        if not layout.coded:
            return OpenedFile(name, rows, file)
        if quantiser is None:
            raise SnapshotError("its rotation is missing")
        scan = CodeScan.of_packed(quantiser, arrays["codes"], layout.rows)
        codes = CodedRows(scan, np.array(arrays["projection"]), np.array(arrays["residual"]))
        if self._ring is not None:
            arrays["codes"][...] = 0  # the scan has a copy, from which the removed are erased
        return OpenedFile(name, Shard.of_codes(rows, codes, entry["pilot_radius"]), file)

    def _decrypt(self, name: str, layout: RowsFileLayout) -> Bytes:
        assert self._ring is not None, "plain files need no key"
        buffer = np.empty(layout.size, np.uint8)
        place = 0
        with (self._folder / name).open("rb") as file:
            for chunk in decrypt_file(self._ring, file, PURPOSE, name.encode()):
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


def facts_of(identity: IndexIdentity, name: str, layout: RowsFileLayout) -> dict[str, Any]:
    """What a file's header says of it."""
    return {**asdict(identity), "name": name, **asdict(layout), "format": FORMAT}
