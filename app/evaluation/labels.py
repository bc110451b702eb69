"""Labelled photos as CSV: pairs of photos that show one person or two, and boxes of faces."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.evaluation.errors import EvaluationError
from app.types import FloatArray

PAIR_COLUMNS = ("image_a", "image_b", "same")
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
    """Read `image,x1,y1,x2,y2`, a line a face, boxes in pixels, as (n, 4) for each photo.

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


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[Mapping[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True, restval="")
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise EvaluationError(
                    f"{path} lacks the column {missing[0]}; its first line must be "
                    f"{','.join(columns)}."
                )
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path} cannot be read as CSV: {error}") from error
