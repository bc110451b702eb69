"""Labelled photos: folders of people, and as CSV pairs, boxes of faces, groups, label noise."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from app.errors import LikenessError
from app.folders import find_photos
from app.types import FloatArray


class EvaluationError(LikenessError):
    """The labels or photos of an evaluation cannot be used; `detail` says how to correct them."""

    code, status, title = "evaluation_error", 422, "The evaluation cannot be run"


PAIR_COLUMNS = ("image_a", "image_b", "same")
MAX_LINE = 1_000_000
FACE_COLUMNS = ("image", "x1", "y1", "x2", "y2")


@dataclass(frozen=True, slots=True)
class LabelledPairs:
    """Comparisons with known answers: photos as paths below one folder, `same` (n,)."""

    images_a: tuple[str, ...]
    images_b: tuple[str, ...]
    same: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)

    @property
    def photos(self) -> list[str]:
        """Every photo once, in the order of first use."""
        return list(dict.fromkeys(self.images_a + self.images_b))


def read_pairs(path: Path) -> LabelledPairs:
    """Read `image_a,image_b,same` with `same` 1 (mated) or 0. Raises EvaluationError."""
    rows = list(_rows(path, PAIR_COLUMNS))
    for line, row in enumerate(rows, start=2):
        if row["same"] not in ("0", "1"):
            raise EvaluationError(f"{path}, line {line}: same is {row['same']!r}; write 0 or 1.")
    return LabelledPairs(
        tuple(row["image_a"] for row in rows),
        tuple(row["image_b"] for row in rows),
        np.array([row["same"] == "1" for row in rows], dtype=np.bool_),
    )


def read_faces(path: Path) -> dict[str, FloatArray]:
    """Read `image,x1,y1,x2,y2`, a line per face, boxes in pixels, as (n, 4) for each photo.

    Raises EvaluationError.
    """
    boxes: dict[str, list[list[float]]] = {}
    for line, row in enumerate(_rows(path, FACE_COLUMNS), start=2):
        try:
            box = [float(row[column]) for column in FACE_COLUMNS[1:]]
        except ValueError as error:
            raise EvaluationError(f"{path}, line {line}: a box needs four numbers.") from error
        boxes.setdefault(row["image"], []).append(box)
    return {name: np.array(rows, dtype=np.float32) for name, rows in boxes.items()}


def lines_of(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a CSV; a file that is no text, such as a sparse one, may never end its first.
    Raises EvaluationError for a longer one than MAX_LINE."""
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise EvaluationError(
                f"{path} has a line of more than {MAX_LINE:,} characters, so it is not a CSV of "
                "labels; check the path."
            )
        yield line


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[Mapping[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(lines_of(file, path), strict=True, restval="")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise EvaluationError(
                    f"{path} lacks the column {missing[0]}; its first line must be "
                    f"{','.join(columns)}."
                )
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path} cannot be read as CSV: {error}") from error


@dataclass(frozen=True, slots=True)
class LabelledPeople:
    """Photos of people, by person: paths below one folder and whose they are, parallel."""

    folder: Path
    images: tuple[str, ...]
    persons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """What is known to be wrong with labels: photos of somebody else, and people who have several
    names, as all pairs of them, once each; the second of a pair is a second name. Both are left out
    of the comparisons they would spoil, and named in the report."""

    images: frozenset[str] = frozenset()
    same_people: tuple[tuple[str, str], ...] = ()


def read_people(folder: Path) -> LabelledPeople:
    """A folder with one sub-folder a person. Raises EvaluationError when it has no person."""
    photos = find_photos(folder) if folder.is_dir() else []
    if not photos:
        raise EvaluationError(
            f"{folder} has no photos; it must have one subfolder for each person with JPEG, "
            "PNG, WebP, HEIC or AVIF files in it."
        )
    root = folder.resolve()
    return LabelledPeople(
        folder,
        tuple(photo.path.relative_to(root).as_posix() for photo in photos),
        tuple(photo.person_id for photo in photos),
    )


def read_label_noise(path: Path) -> LabelNoise:
    """Read `image,person_a,person_b`: a line with an image is a photo of somebody else, a line
    with two persons says that they are one; so are those that further lines join to them. Raises
    EvaluationError."""
    images, same = set(), []
    for line, row in enumerate(_rows(path, ("image", "person_a", "person_b")), start=2):
        if row["person_a"] and row["person_b"] and not row["image"]:
            if row["person_a"] == row["person_b"]:
                raise EvaluationError(
                    f"{path}, line {line}: {row['person_a']} is named twice; write two names of "
                    "one person, or remove the line."
                )
            same.append((row["person_a"], row["person_b"]))
        elif row["image"] and not (row["person_a"] or row["person_b"]):
            images.add(row["image"])
        else:
            raise EvaluationError(f"{path}, line {line}: give an image, or two persons.")
    return LabelNoise(frozenset(images), tuple(_all_pairs(same)))


def _all_pairs(same: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each two names of one person, where `same` says of some that they are one; names are in the
    order of first use."""
    names = list(dict.fromkeys(name for pair in same for name in pair))
    person = {name: number for number, name in enumerate(names)}
    for one, other in same:
        kept, joined = person[one], person[other]
        person.update({name: kept for name, number in person.items() if number == joined})
    for one, other in combinations(names, 2):
        if person[one] == person[other]:
            yield one, other


def read_attributes(path: Path) -> dict[str, dict[str, str]]:
    """Read `person,<attribute>,…`: for each attribute the group of each person; an empty cell is
    no group. Raises EvaluationError."""
    rows = list(_rows(path, ("person",)))
    names = [name for name in (rows[0] if rows else {}) if name and name != "person"]
    if not names:
        raise EvaluationError(
            f"{path} names no attribute; write person,<attribute>,… and one row for each person."
        )  # fmt: skip
    return {name: {row["person"]: row[name] for row in rows if row[name]} for name in names}
