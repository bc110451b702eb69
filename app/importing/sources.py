"""Which kind of source a name on the command line is."""

import glob
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, BinaryIO

from app.importing.folders import count_folder, folder_rows
from app.importing.layouts import composed
from app.importing.parquet import count_parquet, parquet_rows
from app.importing.source_options import SourceOptions, check_encoding
from app.importing.source_rows import (
    ImportSourceError,
    NotAPhoto,
    Row,
    UnreadableFile,
    printable,
    read_file,
)
from app.importing.tables import TABLES, TableContext, count_rows, text_of
from app.importing.tars import tar_rows, tar_stream_rows
from app.importing.zips import count_zip, zip_rows

STDIN = "-"
PREFIX = "compreface:"
FORMATS = ("csv", "jsonl", "tar")
PARQUET, ZIP, TAR = ".parquet", ".zip", ".tar"
FOLDER = "folder"


def rows_of(sources: list[str], options: SourceOptions) -> Iterator[Row]:
    """The rows of all sources, one after the other. A folder or an archive with nothing to import
    is most likely another than was meant. Raises ImportSourceError."""
    _check_options(sources, options)
    for source in _expanded(sources):
        something = source == STDIN or kind_of(source) in (*TABLES, PARQUET)
        for row in _rows_of(source, options):
            something = something or not isinstance(row.problem, NotAPhoto)
            yield row
        if not something:
            # A client need not know where a service keeps what it is sent.
            shown = Path(source).name if options.uploaded else source
            raise ImportSourceError(f"{shown} has no photos to import, and no table of them.")


def _check_options(sources: list[str], options: SourceOptions) -> None:
    """Raise ImportSourceError for an option of the command that no source would use."""
    names = {
        "--pattern": options.pattern,
        "--person-from": options.person_from,
        "--names-encoding": options.names_encoding,
    }
    given = [name for name, value in names.items() if value is not None]
    if options.uploaded or not (given or options.images or options.given_space):
        return
    kinds = {_kind(source, options) for source in _expanded(sources)}
    tables = {*TABLES, PARQUET}
    if not kinds <= {*tables, FOLDER, PREFIX, ZIP, TAR}:
        return  # reading that source says what is wrong
    if given and kinds.isdisjoint({FOLDER, ZIP, TAR}):
        raise ImportSourceError(f"{given[0]} is for a folder or an archive, and no source is one.")
    if options.images is not None:
        if kinds.isdisjoint(tables):
            raise ImportSourceError("--images is for a table, and no source is one.")
        if not options.images.is_dir():
            raise ImportSourceError(f"{options.images} is no folder (--images).")
    if options.given_space is not None and kinds.isdisjoint({*tables, ZIP}):
        raise ImportSourceError("--space is for a table of embeddings, and no source is one.")


def _kind(source: str, options: SourceOptions) -> str:
    """FOLDER, PREFIX or the extension of a file's name, of standard input that of its format."""
    if source == STDIN:
        return f".{options.stdin_format}"
    if source.startswith(PREFIX):
        return PREFIX
    return FOLDER if Path(source).is_dir() else kind_of(source)


def _expanded(sources: list[str]) -> Iterator[str]:
    """Names with * ? [ ] that the shell did not expand, in the order of the names."""
    for source in sources:
        if source == STDIN or source.startswith(PREFIX) or Path(source).exists():
            yield source
        elif found := sorted(glob.glob(source)):  # noqa: PTH207 (Path's knows no absolute ones)
            yield from found
        else:
            yield source  # reading it says what is wrong


def _rows_of(source: str, options: SourceOptions) -> Iterator[Row]:
    path, kind = Path(source), kind_of(source)
    if options.names_encoding is not None:
        check_encoding(options.names_encoding)
    if source == STDIN:
        yield from _from_stdin(options)
    elif source.startswith(PREFIX):
        yield from _compreface().compreface_rows(source, options.key, options.max_bytes)
    elif path.is_dir():
        yield from folder_rows(path, options)
    elif not path.exists():
        raise ImportSourceError(f"{printable(source)} does not exist; check the path.")
    elif kind == PARQUET:
        yield from parquet_rows(_existing(path), _context(options, path.parent))
    elif kind in TABLES:
        with _opened(path) as file, text_of(file) as text:
            yield from TABLES[kind](text, path.name, _context(options, path.parent))
    elif kind == ZIP:
        with _opened(path) as file:
            yield from zip_rows(file, path.name, options)
    elif kind == TAR:
        yield from tar_rows(_existing(path), options)
    else:
        raise ImportSourceError(
            f"{printable(source)} is not a source: give a folder, .csv, .jsonl, .parquet, .zip or "
            f".tar (.gz, .bz2, .xz) file, {PREFIX}http://…, or - for standard input."
        )


def kind_of(source: str) -> str:
    """The kind of a file by its extension, in any case; .tar for compressed tars too."""
    path = Path(source.lower())
    is_tar = ".tar" in path.suffixes[-2:] or path.suffix in (".tgz", ".tbz2", ".txz")
    return TAR if is_tar else path.suffix


def _compreface() -> ModuleType:
    """Imported on demand, because it loads an HTTP client."""
    return importlib.import_module("app.importing.compreface")


def _from_stdin(options: SourceOptions) -> Iterator[Row]:
    if options.stdin_format == "tar":
        yield from tar_stream_rows(sys.stdin.buffer, "stdin", options)
    elif options.stdin_format in FORMATS:
        rows = TABLES[f".{options.stdin_format}"]
        with text_of(sys.stdin.buffer) as text:
            yield from rows(text, "stdin", _context(options, Path.cwd()))
    else:
        raise ImportSourceError(
            f"--stdin-format is one of {', '.join(FORMATS)}, not {options.stdin_format}."
        )


def _context(options: SourceOptions, folder: Path) -> TableContext:
    if options.uploaded:
        return TableContext(_find_nothing, options.space, options.given_space)
    root = (options.images or folder).resolve()
    find = partial(_find_in_folder, root, options.max_bytes)
    return TableContext(find, options.space, options.given_space)


def _find_nothing(name: str) -> Any:
    """Refuse a photo named in an uploaded table: it would be a file of the server."""
    raise ImportSourceError(
        f"An uploaded table may have embeddings only, so the photo {printable(name)} is not read; "
        "upload a zip with the table and its photos."
    )


def _find_in_folder(root: Path, max_bytes: int, name: str) -> Any:
    """The reader of a photo below `root`: neither .. nor a link leads out of it."""
    try:
        found = _named(root, name) or _named(root, name.replace("\\", "/")) or root / name
        path = found.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long
        raise UnreadableFile(f"{printable(name)} cannot be found: {error}.") from error
    if not path.is_relative_to(root):
        shown = printable(name)
        raise ImportSourceError(f"{shown} lies outside {root}; --images names another folder.")
    if not path.exists():
        raise UnreadableFile(f"There is no file {printable(str(root / name))}.")
    return partial(read_file, path, max_bytes)


def _named(root: Path, name: str) -> Path | None:
    """The file with that name, in any Unicode form."""
    path = root / name
    if path.exists() or name.isascii():
        return path if path.exists() else None
    path = root
    for part in PurePosixPath(name).parts:
        if not (path / part).exists() and path.is_dir():
            names = [one.name for one in path.iterdir()]
            path /= next((one for one in names if composed(one) == composed(part)), part)
        else:
            path /= part
    return path if path.exists() else None


def _existing(path: Path) -> Path:
    with _opened(path):
        return path


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise ImportSourceError(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        yield file


def total_of(sources: list[str], options: SourceOptions) -> int | None:
    """How many rows there will be, where that is cheap to know."""
    try:
        counts = [_count(source, options) for source in _expanded(sources)]
    except OSError:
        return None  # reading them will say why
    return None if None in counts else sum(count for count in counts if count is not None)


def _count(source: str, options: SourceOptions) -> int | None:
    path, kind = Path(source), kind_of(source)
    if source.startswith(PREFIX):
        return int(_compreface().count_compreface(source, options.key))
    if path.is_dir():
        return count_folder(path, options)
    if kind == PARQUET:
        return count_parquet(path)
    if kind in TABLES and path.is_file():
        with path.open("rb") as file:
            return count_rows(file, kind)
    return count_zip(path, options) if kind == ZIP else None
