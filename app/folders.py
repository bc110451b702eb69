"""A folder of people: one sub-folder a person, named by their id, with their photos in it."""

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
    root = folder.resolve()
    return [
        PersonPhoto(person.name, file)
        for person in sorted(root.iterdir())
        if person.is_dir() and not person.name.startswith(".")
        for file in sorted(person.iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and file.resolve().is_relative_to(root)
    ]
