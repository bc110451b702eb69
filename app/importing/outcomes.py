"""The outcomes of rows: counted, and written to the report as they come."""

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from app.errors import LikenessError
from app.importing.source_rows import MAX_PLACE, ImportSourceError, NotAPhoto, Row, printable

# Longer names are cut off; a person id that long is refused anyway.
MAX_NAME = 300
MAX_DETAIL = 1_000
# Persons that are counted one by one, so that memory does not grow with the source.
MOST_PERSONS = 100_000
LARGEST = 5
# The reason in a report's last line, which counts the rows that are not listed.
NOT_LISTED = "not_listed"


class RowResult(StrEnum):
    """`skipped`: nothing is wrong with the row, and nothing had to be stored."""

    ENROLLED = "enrolled"
    SKIPPED = "skipped"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """The outcome of one row, with a stable reason. `conflict_with`: another person whom the face
    resembles more than its own, at `similarity`."""

    place: str
    person_id: str
    result: RowResult
    reason: str = ""
    detail: str = ""
    face_id: str | None = None
    conflict_with: str | None = None
    similarity: float | None = None

    def __post_init__(self) -> None:
        """Cut long names and texts, because a hostile source could make them any length."""
        for name, most in (("person_id", MAX_NAME), ("place", MAX_PLACE), ("detail", MAX_DETAIL)):
            text = getattr(self, name)
            if (shown := printable(text, most)) is not text:
                object.__setattr__(self, name, shown)

    def members(self) -> dict[str, object]:
        """For a report, in the order of the fields."""
        return {name: getattr(self, name) for name in FIELDS}


FIELDS = tuple(RowOutcome.__dataclass_fields__)


def refusal(row: Row, error: LikenessError) -> RowOutcome:
    """The outcome of a row that cannot be used."""
    result = RowResult.SKIPPED if isinstance(error, NotAPhoto) else RowResult.REJECTED
    return RowOutcome(row.place, row.person_id, result, error.code, error.detail)


# Takes outcomes as they come.
OutcomeCallback: TypeAlias = Callable[[RowOutcome], None]


class Counts:
    """The numbers of rows by outcome and by person. One thread counts, any thread may read."""

    def __init__(self) -> None:
        self.by_reason: Counter[tuple[str, str]] = Counter()
        self.total = 0
        self.conflicts = 0
        self.all_persons = True
        self._persons: Counter[str] = Counter()

    def __call__(self, outcome: RowOutcome) -> None:
        self.by_reason[outcome.result.value, outcome.reason] += 1
        self.total += 1
        self.conflicts += outcome.conflict_with is not None
        if not outcome.person_id or outcome.reason == NotAPhoto.code:
            return
        if outcome.person_id in self._persons or len(self._persons) < MOST_PERSONS:
            self._persons[outcome.person_id] += 1
        else:
            self.all_persons = False

    @property
    def persons(self) -> int:
        """How many persons the rows name; MOST_PERSONS if not `all_persons` were counted."""
        return len(self._persons)

    def largest_persons(self) -> list[tuple[str, int]]:
        """The persons with the most rows, and their numbers of rows."""
        return self._persons.most_common(LARGEST)

    def of(self, result: RowResult) -> int:
        """Rows with that result."""
        return sum(n for (kind, _), n in self.by_reason.copy().items() if kind == result)

    def members(self) -> dict[str, object]:
        """For JSON."""
        return {
            **{result.value: self.of(result) for result in RowResult},
            "conflicts": self.conflicts,
            "persons": self.persons,
            "reasons": [
                {"result": result, "reason": reason, "rows": count}
                for (result, reason), count in sorted(self.by_reason.copy().items())
            ],
        }


@contextmanager
def report_writer(path: Path, most_without: int | None = None) -> Iterator[OutcomeCallback]:
    """One line a row, written as it comes: CSV, or JSON Lines by the name's end. A new file is its
    owner's alone, as it names people. Of the rows that enrolled nobody `most_without` are listed;
    then the last line says how many are left out. Raises ImportSourceError."""
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error
    file = os.fdopen(opened, "w", buffering=1, newline="", encoding="utf-8")
    rows = csv.DictWriter(file, FIELDS)
    as_json = path.suffix == ".jsonl"
    without = 0

    def write(outcome: RowOutcome) -> None:
        try:
            if as_json:
                file.write(json.dumps(outcome.members()) + "\n")
            else:
                rows.writerow(outcome.members())
        except OSError as error:
            raise _unwritable(path, error) from error

    def on_outcome(outcome: RowOutcome) -> None:
        nonlocal without
        without += outcome.result is not RowResult.ENROLLED
        if most_without is None or without <= most_without or outcome.result is RowResult.ENROLLED:
            write(outcome)

    try:
        if not as_json:
            try:
                rows.writeheader()
            except OSError as error:
                raise _unwritable(path, error) from error
        yield on_outcome
    finally:
        with suppress(OSError, ImportSourceError):  # a full disk was reported before
            if most_without is not None and without > most_without:
                write(_left_out(without - most_without))
            file.close()


def _left_out(count: int) -> RowOutcome:
    detail = f"{count:,} more rows enrolled nobody; they are counted but not listed."
    return RowOutcome("", "", RowResult.SKIPPED, NOT_LISTED, detail)


def _unwritable(path: Path, error: OSError) -> ImportSourceError:
    return ImportSourceError(f"The report {path.name} cannot be written: {error.strerror}.")
