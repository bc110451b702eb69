"""Zips: an import reads them without unpacking; an export and a remote import write them."""

import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import orjson

from app.importing.expansion import Budget
from app.importing.layouts import (
    Layout,
    NameDecoder,
    Survey,
    check_text,
    composed,
    given_layout,
    is_junk,
    parts_of,
    problem_of,
)
from app.importing.source_options import SourceOptions
from app.importing.source_rows import ImportSourceError, Row, printable
from app.importing.tables import (
    MAX_LINE,
    TABLES,
    TableContext,
    count_rows,
    has_columns,
    is_manifest,
    text_of,
)
from app.importing.unpacking import UNREADABLE, open_member

MANIFEST = "manifest.jsonl"
IN_MEMORY = 16 << 20


class Bundle:
    """Rows and files, the manifest last. Raises OSError."""

    def __init__(self, archive: zipfile.ZipFile, manifest: IO[bytes]) -> None:
        self._archive = archive
        self._manifest = manifest

    def add(self, members: Mapping[str, Any]) -> None:
        """One row; it may name files."""
        self._manifest.write(line(members))

    def add_file(self, name: str, content: bytes) -> str:
        """One file, of a kind that is compressed already; its name."""
        self._archive.writestr(name, content, zipfile.ZIP_STORED)
        return name


@contextmanager
def new_bundle(file: "IO[bytes] | str") -> Iterator[Bundle]:
    """A bundle in a file, whole when the context ends."""
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        tempfile.SpooledTemporaryFile(IN_MEMORY) as manifest,
    ):
        yield Bundle(archive, manifest)
        manifest.seek(0)
        with archive.open(MANIFEST, "w", force_zip64=True) as member:
            shutil.copyfileobj(manifest, member)


def line(members: Mapping[str, Any]) -> bytes:
    """One row of JSON Lines; float32 arrays come back to the bit."""
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


# Bytes of a table within an archive, because a few compressed bytes may expand to many rows.
MAX_TABLE = 4 << 30
# Bytes of a table that is read an additional time to count its rows.
MAX_COUNTED = 256 << 20
UTF8_NAME = 0x800
UNPACK = ", not a zip; unpack it and import the folder"
FETCH = ", not a zip; copy or download it again"
# What other archives, and pages that were saved in place of one, begin with.
SIGNATURES = {
    b"Rar!\x1a\x07": "a RAR archive" + UNPACK,
    b"7z\xbc\xaf\x27\x1c": "a 7z archive" + UNPACK,
    b"\x1f\x8b": "a gzip file" + UNPACK,
    b"BZh": "a bzip2 file" + UNPACK,
    b"\xfd7zXZ\x00": "an xz file" + UNPACK,
    b"<!DOCTYPE": "a web page" + FETCH,
    b"<html": "a web page" + FETCH,
}
TAR_MARK, TAR_MARK_AT = b"ustar", 257


def zip_rows(file: BinaryIO, name: str, options: SourceOptions) -> Iterator[Row]:
    """The rows of its only table, else <…>/<person_id>/<photo>. Raises ImportSourceError."""
    with _opened(file, name, options) as archive:
        table = archive.table()
        if table is not None:
            yield from archive.table_rows(table)
        else:
            yield from archive.photo_rows()


def count_zip(path: Path, options: SourceOptions) -> int | None:
    """The number of rows of a zip; None if it cannot be read or counting would take long."""
    try:
        with _opened(path, path.name, options) as archive:
            table = archive.table()
            return len(archive.files) if table is None else archive.count_rows(table)
    except ImportSourceError:
        return None  # reading it reports the reason


@contextmanager
def _opened(file: "BinaryIO | Path", name: str, options: SourceOptions) -> Iterator["_Zip"]:
    try:
        with zipfile.ZipFile(file) as archive:
            if len(archive.filelist) > options.max_members:
                raise ImportSourceError(
                    f"{name} has more than {options.max_members:,} files; split it."
                )
            yield _Zip(archive, name, options, _size(archive))
    except UNREADABLE as error:
        if kind := _other_kind(file):
            raise ImportSourceError(f"{name} is {kind}.") from error
        raise ImportSourceError(f"{name} is not a complete zip file: {error}.") from error


def _other_kind(file: "BinaryIO | Path") -> str | None:
    """What a file with the name of a zip is by its first bytes, and what to do; None if they do
    not tell."""
    try:
        if isinstance(file, Path):
            with file.open("rb") as opened:
                first = opened.read(len(TAR_MARK) + TAR_MARK_AT)
        else:
            file.seek(0)
            first = file.read(len(TAR_MARK) + TAR_MARK_AT)
    except OSError:
        return None
    if not first:
        return "an empty file" + FETCH
    if first[TAR_MARK_AT:] == TAR_MARK:
        return "a tar archive, not a zip; name it .tar"
    return next((kind for mark, kind in SIGNATURES.items() if first.startswith(mark)), None)


class _Zip:
    """An open zip: its files by path, without those that systems create."""

    def __init__(
        self, archive: zipfile.ZipFile, name: str, options: SourceOptions, size: int
    ) -> None:
        self._archive = archive
        self._budget = Budget(name, size)
        self._name = name
        self._options = options
        # Of several of one name the last counts, as for programs that unpack.
        named = _named(archive, options.names_encoding)
        self.files = dict(sorted(named, key=lambda one: one[0]))
        self._composed = {composed(str(path)): path for path in self.files}

    def table(self) -> PurePosixPath | None:
        """The only table of persons, or None. Raises ImportSourceError if there are several, or if
        a file is named like a manifest but is not one."""
        tables = [path for path in self.files if path.suffix.lower() in TABLES]
        found = [path for path in tables if self._is_of_persons(path)]
        if len(found) > 1:
            named = ", ".join(printable(str(path)) for path in found[:5])
            raise ImportSourceError(
                f"{self._name} has several tables of persons, {named}; remove all but one."
            )
        return found[0] if found else None

    def _is_of_persons(self, path: PurePosixPath) -> bool:
        if is_manifest(path.name):
            return True  # reading it reports what is wrong with it
        try:
            with self._read(self.files[path], MAX_LINE) as file, text_of(file) as text:
                return has_columns(text, path.suffix.lower())
        except ImportSourceError:
            return False

    def table_rows(self, table: PurePosixPath) -> Iterator[Row]:
        """The rows of a table; paths of photos are relative to its folder, else to the root."""
        info = self.files[table]
        if info.file_size > MAX_TABLE:
            raise ImportSourceError(
                f"{table} in {self._name} has {info.file_size:,} bytes; a table in an archive may "
                f"have {MAX_TABLE:,}. Split it."
            )

        def find(name: str) -> Callable[[], bytes]:
            return self._content(self._found(name, table.parent))

        options = self._options
        context = TableContext(find, options.space, options.given_space)
        # Its bytes are counted as they are read, beside its rows.
        with self._read(info, 0) as opened, text_of(self._budget.table(opened)) as text:
            rows_of = TABLES[table.suffix.lower()]
            yield from self._budget.rows(rows_of(text, f"{self._name}/{table}", context))

    def count_rows(self, table: PurePosixPath) -> int | None:
        """The approximate number of rows of a table; None if counting would take long."""
        if self.files[table].file_size > MAX_COUNTED:
            return None
        with self._read(self.files[table]) as file:
            return count_rows(file, table.suffix.lower())

    def _found(self, name: str, folder: PurePosixPath) -> zipfile.ZipInfo:
        for wanted in (name, name.replace("\\", "/")):
            for path in (folder / wanted, PurePosixPath(wanted)):
                real = self._composed.get(composed(str(path)))
                if real is not None:
                    return self.files[real]
        beside = printable(str(folder / name))
        raise ImportSourceError(
            f"The archive has neither a file {beside}, nor {printable(name)} in its root."
        )

    def photo_rows(self) -> Iterator[Row]:
        """Every file, by path."""
        layout = given_layout(self._options) or self._surveyed()
        for path, info in self.files.items():
            row = self._row(layout, path, info)
            self._budget.check()
            yield row

    def _surveyed(self) -> Layout:
        survey = Survey()
        for path in self.files:
            if problem_of(path) is None:
                survey.add(path)
        return survey.layout(self._name) if survey.photos else Layout()

    def _row(self, layout: Layout, path: PurePosixPath, info: zipfile.ZipInfo) -> Row:
        """The row of one file; if it cannot be read, only this row has a problem."""
        place = f"{self._name}/{path}"
        try:
            check_text(str(path))
            problem = problem_of(path)
            if problem is not None:
                return Row(place, layout.likely_person_of(path), problem=problem)
            return Row(place, layout.person_of(path), self._content(info))
        except ImportSourceError as problem:
            return Row(place, layout.likely_person_of(path), problem=problem)

    def _content(self, info: zipfile.ZipInfo) -> Callable[[], bytes]:
        """What gives the bytes, which are read now: the archive is closed when its last row was
        given. Raises ImportSourceError."""
        most = self._options.max_bytes + 1
        with self._read(info, most) as opened:
            return io.BytesIO(opened.read(most)).getvalue

    @contextmanager
    def _read(self, info: zipfile.ZipInfo, most: int | None = None) -> Iterator[Any]:
        """A member that is read to its end; of it `most` bytes are counted, all for None. Raises
        ImportSourceError."""
        # No member gives more than the size that it states.
        self._budget.take(info.file_size if most is None else min(info.file_size, most))
        try:
            with open_member(self._archive, info) as opened:
                yield opened
        except UNREADABLE as error:
            raise ImportSourceError(
                f"The file cannot be read from the archive: {error}."
            ) from error


def _size(archive: zipfile.ZipFile) -> int:
    """The bytes of the whole file."""
    assert archive.fp is not None, "it is open"
    return archive.fp.seek(0, io.SEEK_END)


def _named(
    archive: zipfile.ZipFile, encoding: str | None
) -> Iterator[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """Files by their path. Names without the flag of UTF-8 are UTF-8 if all of them are, as many
    programs write them, else what is given."""
    infos = [info for info in archive.filelist if not info.is_dir()]
    decoder = NameDecoder(map(_raw, filter(_is_unflagged, infos)), encoding)
    for info in infos:
        text = decoder.text(_raw(info)) if _is_unflagged(info) else info.filename
        # Some Windows programs write backslashes.
        path = parts_of(text if "/" in text else text.replace("\\", "/"))
        if not is_junk(path):
            yield path, info


def _is_unflagged(info: zipfile.ZipInfo) -> bool:
    return not info.flag_bits & UTF8_NAME and not info.filename.isascii()


def _raw(info: zipfile.ZipInfo) -> bytes:
    """The bytes of a name that zipfile decoded as code page 437."""
    return info.filename.encode("cp437")
