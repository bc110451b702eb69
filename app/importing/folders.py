"""Photos in a folder: one folder for each person, or file names that contain the person's id."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from app.errors import LikenessError
from app.folders import sorted_entries
from app.importing.layouts import (
    Layout,
    NameDecoder,
    Survey,
    check_text,
    given_layout,
    is_junk,
    problem_of,
)
from app.importing.source_options import SourceOptions
from app.importing.source_rows import ImportSourceError, Row, UnreadableFile, read_file

MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class _File:
    """One file below the folder; `problem`: why it cannot be imported."""

    path: PurePosixPath
    real: Path
    problem: LikenessError | None = None

    def row(self, layout: Layout, max_bytes: int) -> Row:
        problem = self.problem
        try:
            if problem is None:
                person_id = layout.person_of(self.path)
                return Row(str(self.path), person_id, partial(read_file, self.real, max_bytes))
        except ImportSourceError as error:
            problem = error
        return Row(str(self.path), layout.likely_person_of(self.path), problem=problem)


def folder_rows(folder: Path, options: SourceOptions) -> Iterator[Row]:
    """Every file below FOLDER, sorted by path: FOLDER/<person_id>/<photo> unless `options` differ.

    Links that lead out of the folder are not followed; they, and photos in other places, become
    rows with a problem. Raises ImportSourceError.
    """
    root = folder.resolve()
    layout = given_layout(options)
    if layout is None:
        survey = Survey()
        for file in _files(root, options.names_encoding):
            if file.problem is None:
                survey.add(file.path)
        layout = survey.layout(str(folder)) if survey.photos else Layout()
    for file in _files(root, options.names_encoding):
        yield file.row(layout, options.max_bytes)


def count_folder(folder: Path, options: SourceOptions) -> int:
    """How many rows a folder has."""
    return sum(1 for _ in _files(folder.resolve(), options.names_encoding))


def _files(root: Path, encoding: str | None) -> Iterator[_File]:
    try:
        yield from _Walk(root, encoding).below(root, PurePosixPath(), linked=False)
    except OSError as error:
        raise ImportSourceError(
            f"{error.filename or root} cannot be read: {error.strerror}. Check that this user may "
            "read it."
        ) from error


class _Walk:
    """What is below a resolved folder, by name."""

    def __init__(self, root: Path, encoding: str | None) -> None:
        self._root = root
        self._encoding = encoding

    def below(self, folder: Path, path: PurePosixPath, *, linked: bool) -> Iterator[_File]:
        try:
            entries = sorted_entries(folder)
        except OSError as error:
            if folder == self._root:
                raise
            unreadable = UnreadableFile(f"The folder cannot be read: {error.strerror}.")
            yield _File(path, folder, unreadable)
            return
        for entry in entries:
            here = path / self._text(entry.name)
            if is_junk(PurePosixPath(here.name)):
                continue
            real = Path(entry.path)
            problem = self._link_problem(entry, linked=linked) or _text_problem(here)
            if problem is not None:
                yield _File(here, real, problem)
            elif len(here.parts) > MAX_DEPTH:
                yield _File(here, real, ImportSourceError(
                    f"The file is nested more than {MAX_DEPTH} folders deep; move it up."
                ))  # fmt: skip
            elif entry.is_dir():
                yield from self.below(real, here, linked=linked or entry.is_symlink())
            else:
                yield _File(here, real, problem_of(here) or _kind_problem(entry))

    def _text(self, name: str) -> str:
        if name.isascii():
            return name
        raw = os.fsencode(name)
        return NameDecoder([raw], self._encoding).text(raw)

    def _link_problem(self, entry: "os.DirEntry[str]", *, linked: bool) -> LikenessError | None:
        """Why a link is not followed, else None. Links to other folders within the source are
        followed, except links that would form a loop."""
        if not entry.is_symlink():
            return None
        try:
            target = Path(entry.path).resolve(strict=True)
        except (OSError, RuntimeError):
            return UnreadableFile("The link is broken: it leads to no file.")
        if not target.is_relative_to(self._root):
            return UnreadableFile("The link leads out of the folder; it is not followed.")
        inside = Path(entry.path).parent.resolve()
        if entry.is_dir() and (linked or inside.is_relative_to(target)):
            return UnreadableFile(
                "The link is not followed: it leads back to a folder above it, or is itself behind "
                "another link."
            )
        return None


def _text_problem(path: PurePosixPath) -> ImportSourceError | None:
    try:
        check_text(path.name)
    except ImportSourceError as problem:
        return problem
    return None


def _kind_problem(entry: "os.DirEntry[str]") -> UnreadableFile | None:
    try:
        regular = stat.S_ISREG(entry.stat().st_mode)
    except OSError as error:
        return UnreadableFile(f"The file cannot be read: {error.strerror}.")
    return None if regular else UnreadableFile("It is not a regular file.")
