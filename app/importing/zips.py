"""Zips, read without unpacking: a table and the photos that it names, or folders of people."""

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from app.importing.rows import ImportSourceError, Row, by_folder, is_image
from app.importing.tables import TableContext, count_lines, csv_rows, jsonl_rows, text_of
from app.importing.unpacking import UNREADABLE, open_member

TABLES = {"persons.jsonl": jsonl_rows, "manifest.jsonl": jsonl_rows, "manifest.csv": csv_rows}
# Of a table within an archive, where a few bytes may expand to any number of rows.
MAX_TABLE = 4 << 30


def zip_rows(
    file: BinaryIO, name: str, space: str, max_bytes: int, max_members: int
) -> Iterator[Row]:
    """The rows of a table at its root, else <…>/<person_id>/<photo>."""
    with _opened(file, name, max_members) as archive:
        infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        for table, rows_of in TABLES.items():
            if table in infos:
                context = TableContext(partial(_find_in_zip, archive, infos, max_bytes), space)
                _check_size(infos[table], name)
                with open_member(archive, infos[table]) as opened, text_of(opened) as text:
                    yield from rows_of(text, f"{name}/{table}", context)
                return
        for path in sorted(infos):
            if is_image(path):
                yield _zipped_photo(archive, infos[path], f"{name}/{path}", max_bytes)


@contextmanager
def _opened(file: "BinaryIO | Path", name: str, max_members: int) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            if len(archive.filelist) > max_members:
                raise ImportSourceError(f"{name} has more than {max_members:,} files; split it.")
            yield archive
    except UNREADABLE as error:
        raise ImportSourceError(f"{name} is not a whole zip file: {error}.") from error


def _check_size(table: zipfile.ZipInfo, name: str) -> None:
    if table.file_size > MAX_TABLE:
        raise ImportSourceError(
            f"{table.filename} in {name} has {table.file_size:,} bytes, more than the "
            f"{MAX_TABLE:,} of a table in an archive; split it."
        )


def count_zip(path: Path, max_members: int) -> int | None:
    """Rows of a zip; None for what is none."""
    try:
        with _opened(path, path.name, max_members) as archive:
            infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            table = next((name for name in TABLES if name in infos), None)
            if table is None:
                return sum(map(is_image, infos))
            _check_size(infos[table], path.name)
            with open_member(archive, infos[table]) as file:
                return count_lines(file) - table.endswith(".csv")
    except ImportSourceError:
        return None  # reading it will say why


def _zipped_photo(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str, max_bytes: int
) -> Row:
    """One that cannot be read fails alone."""
    try:
        return by_folder(place, info.filename, _read_zipped(archive, info, max_bytes))
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
        with open_member(archive, info) as opened:
            return io.BytesIO(opened.read(max_bytes + 1)).getvalue
    except UNREADABLE as error:
        raise ImportSourceError(f"It cannot be read from the archive: {error}.") from error
