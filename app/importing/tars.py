"""Tars, read in one pass: folders of people, WebDataset samples."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from app.errors import LikenessError
from app.importing.rows import ImportSourceError, Row, by_folder, is_image
from app.importing.tables import PERSON
from app.importing.tar_stream import TarStream

# What stands beside a photo in a WebDataset shard, under the same name.
SIDECARS = {".json", ".cls", ".txt"}
MAX_SIDECAR = 1_000_000
# Photos named dr.no.1.jpg, dr.no.2.jpg, … look like one sample: not all are held at once.
MAX_PHOTOS_A_SAMPLE = 32
BYTES_A_SAMPLE = 64 << 20


@dataclass(slots=True)
class _Photo:
    path: str
    data: bytes = b""
    problem: LikenessError | None = None


@dataclass(slots=True)
class _Sample:
    """Files of one name in a shard: photos, and what is said of them."""

    key: str
    photos: list[_Photo] = field(default_factory=list)
    sidecar: dict[str, Any] = field(default_factory=dict)
    problem: ImportSourceError | None = None
    size: int = 0

    def is_full(self) -> bool:
        return len(self.photos) >= MAX_PHOTOS_A_SAMPLE or self.size >= BYTES_A_SAMPLE


def tar_rows(file: BinaryIO, name: str, max_bytes: int, max_members: int) -> Iterator[Row]:
    """<…>/<person_id>/<photo>, or WebDataset samples: files of one name that follow one another,
    where `.json` holds person_id and metadata, or `.cls` or `.txt` the person alone. Read in one
    pass, whatever the compression; links are left alone."""
    sample = _Sample("")
    stream = TarStream(file, name, max_members)
    for member in stream.members():
        path = PurePosixPath(member.name)
        if not member.isfile() or path.name.startswith("."):
            continue
        # WebDataset: the key ends at the first dot of the file's name.
        key = str(path.parent / path.name.split(".")[0])
        if key != sample.key or sample.is_full():
            yield from _rows_of(sample, name)
            same = key == sample.key
            sample = _Sample(
                key,
                sidecar=sample.sidecar if same else {},
                problem=sample.problem if same else None,
            )
        _add(stream, member, sample, max_bytes)
    yield from _rows_of(sample, name)


def _add(stream: TarStream, member: tarfile.TarInfo, sample: _Sample, max_bytes: int) -> None:
    suffix = PurePosixPath(member.name).suffix.lower()
    if is_image(member.name):
        if member.sparse is not None:
            problem = ImportSourceError("A sparse member of a tar is not read; store it whole.")
            sample.photos.append(_Photo(member.name, problem=problem))
            return
        photo = _Photo(member.name, stream.content(member, max_bytes + 1))
        sample.photos.append(photo)
        sample.size += len(photo.data)
    elif suffix in SIDECARS and member.sparse is None:
        try:
            sample.sidecar |= _said(suffix, stream.content(member, MAX_SIDECAR + 1))
        except ImportSourceError as problem:
            sample.problem = problem


def _said(suffix: str, content: bytes) -> dict[str, Any]:
    """What a sidecar says of its photo. Raises ImportSourceError."""
    if len(content) > MAX_SIDECAR:
        raise ImportSourceError(f"Its {suffix} has more than {MAX_SIDECAR:,} bytes.")
    try:
        text = content.decode("utf-8").strip()
        said = json.loads(text) if suffix == ".json" else {PERSON: text}
    except (ValueError, RecursionError) as error:
        raise ImportSourceError(f"Its {suffix} cannot be read: {error}.") from error
    if not isinstance(said, dict):
        raise ImportSourceError(f"Its {suffix} is no JSON object.")
    return said


def _rows_of(sample: _Sample, archive: str) -> Iterator[Row]:
    for photo in sample.photos:
        place = f"{archive}/{photo.path}"
        read = io.BytesIO(photo.data).getvalue
        problem = photo.problem or sample.problem
        if problem is not None:
            person_id = PurePosixPath(photo.path).parent.name
            yield Row(place, str(sample.sidecar.get(PERSON, person_id)), problem=problem)
        elif PERSON not in sample.sidecar:
            yield by_folder(place, photo.path, read)
        else:
            others = {key: value for key, value in sample.sidecar.items() if key != PERSON}
            metadata = others.pop("metadata", {})
            merged = {**others, **(metadata if isinstance(metadata, dict) else {})}
            yield Row(place, str(sample.sidecar[PERSON]), read, metadata=merged or None)
