"""The outcomes of rows: counted, and written to the report as they come; and the journal of an
import, of rows that need not be analysed again after an interruption.

The database has what was enrolled; the journal has what was rejected or skipped, and why. If it or
its last entries are lost, these rows are analysed again."""

import csv
import hashlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from app.disk import private_folder
from app.errors import LikenessError, NoConsent, StoreUnavailable
from app.importing.source_rows import MAX_PLACE, ImportSourceError, NotAPhoto, Row, printable

# Longer names are cut off; a person id that long is refused anyway.
MAX_NAME = 300
MAX_DETAIL = 1_000
IN_A_TABLE = (
    'In a CSV file, write it as JSON into the column metadata: {"consent": {"reference": "…"}}.'
)
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


def rejection(row: Row, error: LikenessError) -> RowOutcome:
    """The outcome of a row that cannot be used."""
    result = RowResult.SKIPPED if isinstance(error, NotAPhoto) else RowResult.REJECTED
    detail = error.detail
    if isinstance(error, NoConsent):
        detail = f"{detail} {IN_A_TABLE}"
    return RowOutcome(row.place, row.person_id, result, error.code, detail)


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
    """One line per row, written as it comes: CSV, or JSON Lines by the name's end. A new file is
    its owner's alone, as it names people. Of the rows that enrolled nobody `most_without` are
    listed; then the last line says how many are left out. Raises ImportSourceError."""
    if path.suffix not in (".csv", ".jsonl"):
        raise ImportSourceError(f"The report {path} does not end in .csv or .jsonl.")
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
    return ImportSourceError(f"The report {path} cannot be written: {error.strerror}.")


BUSY_TIMEOUT_S = 30.0


class Journal:
    """Rejected and skipped rows, by a digest of the person, the content and all that decided.
    Readable by its owner alone; it holds no person ids, photos or embeddings."""

    def __init__(self, path: Path, context: str) -> None:
        """`context`: collection, embedding space, policy and options; another one is another
        decision. This and all below raise StoreUnavailable."""
        self._path = path
        with self._translate_errors():
            private_folder(path.parent)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._connection = sqlite3.connect(path, BUSY_TIMEOUT_S)
            salt = self._prepared()
        self._state = hashlib.blake2b(context.encode(), key=salt, digest_size=24)

    def _prepared(self) -> bytes:
        """The salt of its keys; made with the tables where they are missing."""
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS done (key BLOB PRIMARY KEY, result TEXT, reason TEXT, "
            "detail TEXT) WITHOUT ROWID"
        )
        self._connection.execute("CREATE TABLE IF NOT EXISTS salt (salt BLOB)")
        if self._connection.execute("SELECT count(*) FROM salt").fetchone()[0] == 0:
            self._connection.execute("INSERT INTO salt VALUES (?)", (os.urandom(32),))
        self._connection.commit()
        salt: bytes = self._connection.execute("SELECT salt FROM salt").fetchone()[0]
        return salt

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Failures as what an operator can act upon."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(
                f"The journal of imports, {self._path.name} in the data folder, cannot be used: "
                f"{error}. If the disk is full, free some space. A damaged file may be removed: "
                "the next import checks all rows again."
            ) from error

    def key(self, person_id: str, content: str) -> bytes:
        """The digest of one content of one person."""
        state = self._state.copy()
        state.update(f"\0{person_id}\0{content}".encode())
        return state.digest()

    def find(self, key: bytes) -> tuple[str, str, str] | None:
        """Result, reason and detail of before."""
        query = "SELECT result, reason, detail FROM done WHERE key = ?"
        with self._translate_errors():
            found: tuple[str, str, str] | None = self._connection.execute(query, (key,)).fetchone()
        return found

    def note(self, key: bytes, result: str, reason: str, detail: str) -> None:
        """Remember an outcome; on disk after `keep`."""
        with self._translate_errors():
            self._connection.execute(
                "INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?)", (key, result, reason, detail)
            )

    def keep(self) -> None:
        """Write what was noted."""
        with self._translate_errors():
            self._connection.commit()

    def close(self) -> None:
        """Close it; what was not kept is lost."""
        self._connection.close()
