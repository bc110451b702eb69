"""Which kind of source a name on the command line is."""

import glob
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from app.importing.folders import flat_folder, folder_of_people
from app.importing.parquet import count_parquet, parquet_rows
from app.importing.rows import ImportSourceError, Row, printable, read_file
from app.importing.tables import (
    TableContext,
    count_lines,
    csv_rows,
    jsonl_rows,
    text_of,
)
from app.importing.tars import tar_rows
from app.importing.zips import count_zip, zip_rows

STDIN = "-"
PREFIX = "compreface:"
FORMATS = ("csv", "jsonl", "tar")
PARQUET = ".parquet"
MAX_MEMBERS = 1_000_000
_TABLES = {".csv": csv_rows, ".jsonl": jsonl_rows, ".ndjson": jsonl_rows}


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the sources are read with: `space` is the collection's, `given_space` that of embeddings
    which do not say it; `images` the folder of a table's photos; `pattern` of names in a flat
    folder; `stdin_format` one of FORMATS; `key` opens another service that is a source; an archive
    has at most `max_members` files."""

    space: str
    max_bytes: int
    given_space: str | None = None
    images: Path | None = None
    pattern: str | None = None
    stdin_format: str = "jsonl"
    key: str | None = None
    max_members: int = MAX_MEMBERS


def rows_of(sources: list[str], options: SourceOptions) -> Iterator[Row]:
    """The rows of all sources, one after the other. A folder or an archive with nothing to import
    is most likely another than was meant. Raises ImportSourceError."""
    for source in _expanded(sources):
        rows = _rows_of(source, options)
        first = next(rows, None)
        if first is not None:
            yield first
            yield from rows
        elif source != STDIN and Path(source).suffix not in (*_TABLES, PARQUET):
            raise ImportSourceError(f"{source} has no photos to import, and no table of them.")


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
    path = Path(source)
    if source == STDIN:
        yield from _from_stdin(options)
    elif source.startswith(PREFIX):
        yield from _compreface().compreface_rows(source, options.key, options.max_bytes)
    elif path.is_dir():
        if options.pattern is None:
            yield from folder_of_people(path, options.max_bytes)
        else:
            yield from flat_folder(path, options.pattern, options.max_bytes)
    elif path.suffix == PARQUET:
        yield from parquet_rows(_existing(path), _context(options, path.parent))
    elif path.suffix in _TABLES:
        with _opened(path) as file, text_of(file) as text:
            yield from _TABLES[path.suffix](text, path.name, _context(options, path.parent))
    elif path.suffix == ".zip":
        with _opened(path) as file:
            yield from zip_rows(
                file, path.name, options.space, options.max_bytes, options.max_members
            )
    elif ".tar" in path.suffixes or path.suffix in (".tgz", ".tbz2", ".txz"):
        with _opened(path) as file:
            yield from tar_rows(file, path.name, options.max_bytes, options.max_members)
    else:
        raise ImportSourceError(
            f"{source} is no folder, .csv, .jsonl, .parquet, .zip or .tar (.gz, .bz2, .xz), no "
            f"{PREFIX}http://…, and not - for standard input."
        )


def _compreface() -> ModuleType:
    """Loads an HTTP client, which no other source waits for."""
    return importlib.import_module("app.importing.compreface")


def _from_stdin(options: SourceOptions) -> Iterator[Row]:
    if options.stdin_format == "tar":
        yield from tar_rows(sys.stdin.buffer, "stdin", options.max_bytes, options.max_members)
    elif options.stdin_format in FORMATS:
        rows: Callable[..., Iterator[Row]] = _TABLES[f".{options.stdin_format}"]
        with text_of(sys.stdin.buffer) as text:
            yield from rows(text, "stdin", _context(options, Path.cwd()))
    else:
        raise ImportSourceError(
            f"--stdin-format is one of {', '.join(FORMATS)}, not {options.stdin_format}."
        )


def _context(options: SourceOptions, folder: Path) -> TableContext:
    root = (options.images or folder).resolve()
    find = partial(_find_in_folder, root, options.max_bytes)
    return TableContext(find, options.space, options.given_space)


def _find_in_folder(root: Path, max_bytes: int, name: str) -> Any:
    """The reader of a photo below `root`: neither .. nor a link leads out of it."""
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long
        raise ImportSourceError(f"{printable(name)} cannot be found: {error}.") from error
    if not path.is_relative_to(root):
        shown = printable(name)
        raise ImportSourceError(f"{shown} lies outside {root}; --images names another folder.")
    return partial(read_file, path, max_bytes)


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
    path = Path(source)
    if source.startswith(PREFIX):
        return int(_compreface().count_compreface(source, options.key))
    if path.is_dir():
        return sum(1 for _ in _rows_of(source, options))
    if path.suffix == PARQUET:
        return count_parquet(path)
    if path.suffix in _TABLES and path.is_file():
        with path.open("rb") as file:
            return count_lines(file) - (path.suffix == ".csv")
    return count_zip(path, options.max_members) if path.suffix == ".zip" else None
