"""Photos in folders: one folder a person, or all in one and the person in the name."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from app.folders import is_file_inside, people_of, sorted_entries
from app.importing.rows import ImportSourceError, Row, is_image, read_file

PERSON = "{person_id}"


def folder_of_people(folder: Path, max_bytes: int) -> Iterator[Row]:
    """FOLDER/<person_id>/<photo>, by person and name; links that leave the folder are skipped.

    Photos that lie elsewhere are told as rows that cannot be used, never passed over in silence.
    """
    root = folder.resolve()
    try:
        yield from _astray(root)
        for person in people_of(root):
            for file in sorted_entries(Path(person.path)):
                place = f"{person.name}/{file.name}"
                if is_image(file.name) and is_file_inside(file, root):
                    read = partial(read_file, Path(file.path), max_bytes)
                    yield Row(place, person.name, read)
                elif file.is_dir(follow_symlinks=False) and not file.name.startswith("."):
                    problem = ImportSourceError("Photos lie in a person's folder itself.")
                    yield Row(place, person.name, problem=problem)
    except OSError as error:
        raise ImportSourceError(
            f"{error.filename or folder} cannot be read: {error.strerror}."
        ) from error


def _astray(root: Path) -> Iterator[Row]:
    """Photos that are beside the folders of people. Raises ImportSourceError where there are only
    such."""
    photos = _photos_in(root)
    if photos and next(people_of(root), None) is None:
        raise ImportSourceError(
            f"{root} has photos and no folders of people; say where in their names the person "
            f"stands, as --pattern '{PERSON}_*.jpg'."
        )
    for name in photos:
        problem = ImportSourceError("The photo lies in no folder that is named by a person.")
        yield Row(name, "", problem=problem)


def flat_folder(folder: Path, pattern: str, max_bytes: int) -> Iterator[Row]:
    """Photos directly in a folder; `pattern` says where in the name the person stands."""
    expression = compile_pattern(pattern)
    root = folder.resolve()
    try:
        photos = _photos_in(root)
    except OSError as error:
        raise ImportSourceError(f"{folder} cannot be read: {error.strerror}.") from error
    for name in photos:
        found = expression.fullmatch(name)
        if found is None:
            problem = ImportSourceError(f"The name does not fit the pattern {pattern}.")
            yield Row(name, "", problem=problem)
        else:
            yield Row(name, found["person_id"], partial(read_file, root / name, max_bytes))


def _photos_in(root: Path) -> list[str]:
    """Names of photos directly in a resolved folder: names are small, paths are not."""
    entries = sorted_entries(root)
    return [one.name for one in entries if is_image(one.name) and is_file_inside(one, root)]


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
