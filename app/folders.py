"""A folder of people: one sub-folder a person, named by their id, with their photos in it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True, slots=True)
class PersonPhoto:
    """One file and the person whose folder it lies in."""

    person_id: str
    path: Path


def find_photos(folder: Path) -> list[PersonPhoto]:
    """Every image file one level down, by person and name; links that leave it are skipped."""
    return list(iterate_photos(folder))


def sorted_names(folder: Path) -> list[str]:
    """What lies in a folder: names are small, paths are not."""
    return [entry.name for entry in _entries(folder)]


def iterate_photos(folder: Path) -> Iterator[PersonPhoto]:
    """`find_photos` one by one: of millions, only the people's names are in memory."""
    root = folder.resolve()
    for person in _entries(root):
        if person.name.startswith(".") or not person.is_dir() or not _stays(person, root):
            continue
        for file in _entries(Path(person.path)):
            path = Path(file.path)
            suits = path.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
            if suits and file.is_file() and _stays(file, root):
                yield PersonPhoto(person.name, path)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _stays(entry: "os.DirEntry[str]", root: Path) -> bool:
    """Whether it is no link, or one that stays below the root."""
    return not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root)
