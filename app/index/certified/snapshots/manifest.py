"""The manifest of a snapshot: which files it is made of, and the revision they are at."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.index.certified.snapshots.files import SnapshotError
from app.index.port import Position

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
        raise SnapshotError("its manifest is torn") from error
    raise SnapshotError("its manifest is damaged")
