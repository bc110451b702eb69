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
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def iterate_photos(folder: Path) -> Iterator[PersonPhoto]:
    """`find_photos` one by one: of millions, only the people's names are in memory."""
    root = folder.resolve()
    for person_id in sorted_names(root):
        person = root / person_id
        if person_id.startswith(".") or not person.is_dir():
            continue
        for name in sorted_names(person):
            file = person / name
            hidden = name.startswith(".")
            suits = file.suffix.lower() in IMAGE_SUFFIXES and file.is_file() and not hidden
            if suits and file.resolve().is_relative_to(root):
                yield PersonPhoto(person_id, file)
