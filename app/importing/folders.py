"""Photos in folders: one folder a person, or all in one and the person in the name."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from app.folders import iterate_photos, sorted_names
from app.importing.rows import ImportSourceError, Row, is_image

PERSON = "{person_id}"


def folder_of_people(folder: Path, max_bytes: int) -> Iterator[Row]:
    """FOLDER/<person_id>/<photo>, by person and name; links that leave the folder are skipped."""
    try:
        for photo in iterate_photos(folder):
            place = f"{photo.person_id}/{photo.path.name}"
            yield Row(place, photo.person_id, partial(read_file, photo.path, max_bytes))
    except OSError as error:
        raise ImportSourceError(
            f"{error.filename or folder} cannot be read: {error.strerror}."
        ) from error


def flat_folder(folder: Path, pattern: str, max_bytes: int) -> Iterator[Row]:
    """Photos directly in a folder; `pattern` says where in the name the person stands."""
    expression = compile_pattern(pattern)
    root = folder.resolve()
    for name in sorted_names(root):
        path = root / name
        inside = path.is_file() and path.resolve().is_relative_to(root)
        if not inside or not is_image(path.name):
            continue
        found = expression.fullmatch(path.name)
        if found is None:
            problem = ImportSourceError(f"The name does not fit the pattern {pattern}.")
            yield Row(path.name, "", problem=problem)
        else:
            yield Row(path.name, found["person_id"], partial(read_file, path, max_bytes))


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A name with {person_id} once, * for anything, as {person_id}_*.jpg. Raises
    ImportSourceError."""
    if pattern.count(PERSON) != 1:
        raise ImportSourceError(
            f"A pattern names {PERSON} once, as {PERSON}_*.jpg; this one is {pattern}."
        )
    parts = [
        ".*".join(re.escape(piece) for piece in part.split("*")) for part in pattern.split(PERSON)
    ]
    return re.compile("(?P<person_id>.+?)".join(parts))


def read_file(path: Path, max_bytes: int) -> bytes:
    """The file, or just enough of it to be refused as too large."""
    with path.open("rb") as file:
        return file.read(max_bytes + 1)
