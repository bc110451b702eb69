"""A folder of people: one sub-folder a person, named by their id, with their photos in it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".hif", ".avif"}


@dataclass(frozen=True, slots=True)
class PersonPhoto:
    """One file and the person whose folder it is in."""

    person_id: str
    path: Path


def find_photos(folder: Path) -> list[PersonPhoto]:
    """Every image file one level down, by person and name; links that leave it are skipped."""
    return list(iterate_photos(folder))


def iterate_photos(folder: Path) -> Iterator[PersonPhoto]:
    """`find_photos` one by one: of millions, only the people's names are in memory."""
    root = folder.resolve()
    for person in people_of(root):
        for file in sorted_entries(Path(person.path)):
            path = Path(file.path)
            if path.suffix.lower() in IMAGE_SUFFIXES and is_file_inside(file, root):
                yield PersonPhoto(person.name, path)


def people_of(root: Path) -> Iterator["os.DirEntry[str]"]:
    """The folders of people in a resolved one; links that leave it are skipped."""
    for entry in sorted_entries(root):
        if not entry.name.startswith(".") and entry.is_dir() and _stays(entry, root):
            yield entry


def is_file_inside(entry: "os.DirEntry[str]", root: Path) -> bool:
    """Whether it is a visible file, and no link that leaves `root`, which is resolved."""
    return not entry.name.startswith(".") and entry.is_file() and _stays(entry, root)


def sorted_entries(folder: Path) -> list["os.DirEntry[str]"]:
    """What is in a folder, by name."""
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _stays(entry: "os.DirEntry[str]", root: Path) -> bool:
    """Whether it is no link, or one that stays below the root."""
    return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root)
