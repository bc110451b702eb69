"""Zips and tars, read without unpacking: folders of people, tables, WebDataset shards."""

import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from app.importing.rows import ImportSourceError, Row, is_image
from app.importing.tables import (
    PERSON,
    TableContext,
    count_lines,
    csv_rows,
    jsonl_rows,
    text_of,
)

TABLES = {"persons.jsonl": jsonl_rows, "manifest.jsonl": jsonl_rows, "manifest.csv": csv_rows}
# What stands beside a photo in a WebDataset shard, under the same name.
SIDECARS = {".json", ".cls", ".txt"}
MAX_SIDECAR = 1_000_000
# Photos named dr.no.1.jpg, dr.no.2.jpg, … look like one sample: not all are held at once.
MAX_PHOTOS_A_SAMPLE = 32
# What zipfile raises on members that are damaged, encrypted or compressed in a way it cannot read.
UNREADABLE = (
    zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, zlib.error,
    lzma.LZMAError,
)  # fmt: skip


def zip_rows(file: BinaryIO, name: str, space: str, max_bytes: int) -> Iterator[Row]:
    """The rows of a table at its root, else <…>/<person_id>/<photo>."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            for table, rows_of in TABLES.items():
                if table in infos:
                    context = TableContext(partial(_find_in_zip, archive, infos, max_bytes), space)
                    with archive.open(table) as opened, text_of(opened) as text:
                        yield from rows_of(text, f"{name}/{table}", context)
                    return
            for path in sorted(infos):
                if is_image(path):
                    yield _zipped_photo(archive, infos[path], f"{name}/{path}", max_bytes)
    except UNREADABLE as error:
        raise ImportSourceError(f"{name} is not a whole zip file: {error}.") from error


def count_zip(path: Path) -> int | None:
    """Rows of a zip; None for what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename for info in archive.infolist() if not info.is_dir()}
            table = next((name for name in TABLES if name in names), None)
            if table is None:
                return sum(map(is_image, names))
            with archive.open(table) as file:
                return count_lines(file) - table.endswith(".csv")
    except UNREADABLE:
        return None  # reading it will say why


def _zipped_photo(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str, max_bytes: int
) -> Row:
    """One that cannot be read fails alone."""
    try:
        return _by_folder(place, info.filename, _read_zipped(archive, info, max_bytes))
    except ImportSourceError as problem:
        return Row(place, PurePosixPath(info.filename).parent.name, problem=problem)


def _find_in_zip(
    archive: zipfile.ZipFile, infos: dict[str, zipfile.ZipInfo], max_bytes: int, name: str
) -> Any:
    if name not in infos:
        raise ImportSourceError(f"The archive holds no {name}.")
    return _read_zipped(archive, infos[name], max_bytes)


def _read_zipped(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int
) -> Callable[[], bytes]:
    """What gives the bytes, which are read now: the archive is closed when its last row was
    given. Raises ImportSourceError."""
    try:
        with archive.open(info) as opened:
            return io.BytesIO(opened.read(max_bytes + 1)).getvalue
    except UNREADABLE as error:
        raise ImportSourceError(f"It cannot be read from the archive: {error}.") from error


@dataclass(slots=True)
class _Sample:
    """Files of one name in a shard: a photo and what is said of it."""

    key: str
    photos: list[tuple[str, bytes]] = field(default_factory=list)
    sidecar: dict[str, Any] = field(default_factory=dict)


def tar_rows(file: BinaryIO, name: str, max_bytes: int) -> Iterator[Row]:
    """<…>/<person_id>/<photo>, or WebDataset samples: files of one name that follow one another,
    where `.json` holds person_id and metadata, or `.cls` or `.txt` the person alone. Read in one
    pass, whatever the compression; links are left alone."""
    sample = _Sample("")
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                # WebDataset: the key ends at the first dot of the file's name.
                key = str(path.with_name(path.name.split(".")[0]))
                if not member.isfile() or path.name.startswith("."):
                    continue
                if key != sample.key or len(sample.photos) >= MAX_PHOTOS_A_SAMPLE:
                    yield from _rows_of(sample, name)
                    sample = _Sample(key, sidecar=sample.sidecar if key == sample.key else {})
                _add(archive, member, sample, max_bytes)
            yield from _rows_of(sample, name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ImportSourceError(f"{name} is not a whole tar file: {error}.") from error


def _add(
    archive: tarfile.TarFile, member: tarfile.TarInfo, sample: _Sample, max_bytes: int
) -> None:
    suffix = PurePosixPath(member.name).suffix.lower()
    opened = archive.extractfile(member)
    if opened is None:
        return
    if is_image(member.name):
        sample.photos.append((member.name, opened.read(max_bytes + 1)))
    elif suffix in SIDECARS:
        sample.sidecar |= _said(suffix, opened.read(MAX_SIDECAR))


def _said(suffix: str, content: bytes) -> dict[str, Any]:
    text = content.decode("utf-8", "replace").strip()
    if suffix != ".json":
        return {PERSON: text}
    try:
        said = json.loads(text)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _rows_of(sample: _Sample, archive: str) -> Iterator[Row]:
    for path, data in sample.photos:
        read = io.BytesIO(data).getvalue
        if PERSON not in sample.sidecar:
            yield _by_folder(f"{archive}/{path}", path, read)
            continue
        others = {key: value for key, value in sample.sidecar.items() if key != PERSON}
        metadata = others.pop("metadata", {})
        merged = {**others, **(metadata if isinstance(metadata, dict) else {})}
        yield Row(f"{archive}/{path}", str(sample.sidecar[PERSON]), read, metadata=merged or None)


def _by_folder(place: str, path: str, read: Any) -> Row:
    person_id = PurePosixPath(path).parent.name
    if not person_id or person_id == "..":
        problem = ImportSourceError("The photo lies in no folder that is named by a person.")
        return Row(place, "", problem=problem)
    return Row(place, person_id, read)
