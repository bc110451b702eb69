"""The reports of imports: what they have about a person is erased with the person, and read for an
answer to that person."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

from app.disk import own, private_file, write_whole
from app.importing.job_folder import UNDER_WAY, ImportJob, JobFolder, unwritable
from app.store.identifiers import composed
from app.store.records import Erasure
from app.telemetry.logs import log

# The deletions that are not erased from the reports yet, and the lock of the process that erases
# them; neither is a possible name of a job.
SPOOL, ERASING = "deleted", "erasing"
# A deletion is noted before it is committed, which can take minutes with PostgreSQL. If it is not
# committed in this time, the note lapses.
LAPSES_AFTER = timedelta(minutes=10)
# Members of a line of a report that name a person; the group is the JSON text of the value. A line
# from which one person was erased has no space after the colon.
NAMES = re.compile(rb'"(?:person_id|conflict_with)": ?("(?:[^"\\]|\\.)*")')


class _Deleted(BaseModel):
    """A deleted person, and the imports whose reports may name them."""

    model_config = ConfigDict(frozen=True)

    collection: str
    person_id: str
    at: datetime
    imports: tuple[str, ...]


class ReportEraser:
    """Erases deleted people from the reports in a data folder, one report in each `round`.

    A deletion only writes a note, because a report may have a million lines and one pass over it
    can erase many people. Any process with this data folder can do the erasing.
    """

    def __init__(
        self,
        folder: JobFolder,
        is_there: Callable[[str, str], bool],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`is_there` returns whether a collection has a person with that id."""
        self._folder = folder
        self._is_there = is_there
        self._clock = clock

    def note(self, collection: str, *person_ids: str) -> Erasure:
        """Note, before persons are deleted, that reports may name them; on disk when this returns.
        `DONE` if there is no such report. Raises StoreFull."""
        if not person_ids or not self._folder.path.exists():
            return Erasure.DONE
        with self._folder.exclusive():
            mine = [job for job in self._folder.all() if job.collection == collection]
            found = tuple(job.import_id for job in mine if self._may_name(job))
            if not found:
                return Erasure.DONE
            now = self._clock()
            notes = [
                _Deleted(collection=collection, person_id=composed(one), at=now, imports=found)
                for one in person_ids
            ]
            try:
                self._append(notes)
            except OSError as error:
                raise unwritable("The note for reports of imports", error) from error
        return Erasure.PENDING

    @property
    def is_pending(self) -> bool:
        """Whether reports may name deleted persons."""
        return self._spool.exists()

    def round(self) -> None:
        """Erase deleted persons from one report, unless another process is erasing. Raises OSError
        if one cannot be erased, after the others had their turn, and StoreUnavailable."""
        if not self.is_pending:
            return
        held = own(self._folder.path / ERASING)
        if held is None:  # two that rewrite one line would each leave what the other erased
            return
        try:
            self._round()
        finally:
            os.close(held)

    # --- inside ------------------------------------------------------------------------------

    def _round(self) -> None:
        with self._folder.exclusive():
            notes = self._notes()
        if not notes:
            self._settle(None, ())
        # Asked lazily: notes of running imports need no query each second.
        is_gone = cache(lambda note: not self._is_there(note.collection, note.person_id))
        failed: OSError | None = None
        for import_id in self._ended(notes):
            mine = [note for note in notes if import_id in note.imports]
            people = {note.person_id for note in mine if is_gone(note)}
            try:
                if people:
                    self._erase(import_id, people)
                self._settle(import_id, [one for one in mine if is_gone(one) or self._lapsed(one)])
            except OSError as error:
                failed = failed or error
                continue
            if people:
                break  # one report may have a million lines
        if failed is not None:
            raise failed

    @property
    def _spool(self) -> Path:
        return self._folder.path / SPOOL

    def _may_name(self, job: ImportJob) -> bool:
        """Whether the report of this import may name people, now or later: also that of a queued
        import, which will report rejected rows of a person who was deleted."""
        return job.state in UNDER_WAY or self._folder.report(job).exists()

    def _lapsed(self, note: _Deleted) -> bool:
        return self._clock() - note.at > LAPSES_AFTER

    def _notes(self) -> list[_Deleted]:
        notes: list[_Deleted] = []
        try:
            lines = self._spool.read_bytes().splitlines()
        except FileNotFoundError:  # another process has gone through the last
            return notes
        for line in filter(None, lines):
            try:
                notes.append(_Deleted.model_validate_json(line))
            except ValueError:  # cut off by a crash: that deletion was not answered
                log(logging.WARNING, "an incomplete note of a deletion is ignored")
        return notes

    def _append(self, notes: Iterable[_Deleted]) -> None:
        private_file(self._spool)
        with self._spool.open("ab") as file:
            file.write(b"\n" + b"".join(one.model_dump_json().encode() + b"\n" for one in notes))
            file.flush()
            os.fsync(file.fileno())

    def _ended(self, notes: Iterable[_Deleted]) -> Iterator[str]:
        """The imports that have ended, so that their reports are not written any more."""
        for import_id in dict.fromkeys(one for note in notes for one in note.imports):
            job = self._folder.find(import_id)
            if job is None or job.state not in UNDER_WAY:
                yield import_id

    def _erase(self, import_id: str, people: set[str]) -> None:
        job = self._folder.find(import_id)
        if job is None:
            return
        with suppress(FileNotFoundError):  # one that is forgotten meanwhile names nobody
            erase_people(self._folder.report(job), people)
        # Any of its words may be a part of a path that names a person.
        detail = composed(job.detail or "")  # paths keep the form that the archive has
        if any(one and one in detail for one in people):
            with self._folder.exclusive():
                now = self._folder.find(import_id)
                if now is not None:
                    self._folder.save(now.model_copy(update={"detail": None}))

    def _settle(self, import_id: str | None, settled: Iterable[_Deleted]) -> None:
        """Remove an import from the notes that are `settled`, and drop notes without imports. Notes
        that were added since the spool was read stay as they are."""
        done = set(settled)
        with self._folder.exclusive():
            left = []
            for note in self._notes():
                if note in done:
                    imports = tuple(one for one in note.imports if one != import_id)
                    note = note.model_copy(update={"imports": imports})  # noqa: PLW2901
                if note.imports:
                    left.append(note)
            if left:
                write_whole(self._spool, [f"{one.model_dump_json()}\n".encode() for one in left])
            else:
                self._spool.unlink(missing_ok=True)


def erase_people(report: Path, people: set[str]) -> None:
    """Overwrite in a JSON Lines report the lines that name any of them; such a line keeps its
    length, its result and its reason. On disk when this returns. Raises OSError."""
    with report.open("r+b") as file:
        changed = False
        for start, line in _lines(file):
            if not any(name_in(found) in people for found in NAMES.findall(line)):
                continue
            os.pwrite(file.fileno(), _redacted(line, people), start)
            changed = True
        if changed:
            os.fsync(file.fileno())


def _lines(file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    start = 0
    for line in file:
        yield start, line
        start += len(line)


def name_in(text: bytes) -> str:
    """The id, in Form C, that `NAMES` found in a report."""
    return composed(str(json.loads(text)))


def _redacted(line: bytes, people: set[str]) -> bytes:
    """A line of the same length without the names; only spaces if the rest does not fit."""
    content = line.rstrip(b"\r\n")
    blank = b" " * len(content) + line[len(content) :]
    try:
        row = json.loads(content)
    except ValueError:  # cut off by a crash
        return blank
    row |= {"conflict_with": None, "similarity": None, "detail": ""}
    if composed(str(row["person_id"])) in people:
        row |= {"place": "", "person_id": "", "face_id": None}
    text = json.dumps(row, separators=(",", ":")).encode()
    return text.ljust(len(content)) + line[len(content) :] if len(text) <= len(content) else blank


MOST_ROWS = 1_000
PIECE = 1 << 20  # bytes of a report that are read at a time
# What is shown of other persons' rows, which name this person as similar to the face: nothing that
# identifies the others.
OF_OTHERS = ("result", "reason", "similarity")


def rows_about(
    folder: JobFolder,
    collection: str,
    person_id: str,
    check: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], bool]:
    """The rows of a person in the reports of imports into a collection, and rows of others that
    name the person, in the order of the reports: the first MOST_ROWS, and whether there are more.
    `check` is called for each PIECE; if it raises, reading ends. Raises OSError."""
    rows = _rows(folder, collection, composed(person_id), check)
    found = list(islice(rows, MOST_ROWS + 1))
    return found[:MOST_ROWS], len(found) > MOST_ROWS


def _rows(
    folder: JobFolder, collection: str, person_id: str, check: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    jobs = [job for job in folder.all() if job.collection == collection]
    for job in sorted(jobs, key=lambda job: job.created_at):
        try:
            file = folder.report(job).open("rb")
        except FileNotFoundError:  # not begun, or forgotten meanwhile
            continue
        with file:
            for line in _lines_about(file, person_id, check):
                yield {"import_id": job.import_id, **_shown(line, person_id)}


def _lines_about(file: BinaryIO, person_id: str, check: Callable[[], None]) -> Iterator[bytes]:
    """The lines that name a person. A report may have millions of others, so pieces of it that
    cannot name the person are not divided into lines."""
    id_json = json.dumps(person_id).encode()
    unfinished_line = b""
    while piece := file.read(PIECE):
        check()
        lines, _, unfinished_line = (unfinished_line + piece).rpartition(b"\n")
        if _may_contain(lines, id_json):
            yield from (line for line in lines.splitlines() if _names(line, id_json, person_id))
    if _names(unfinished_line, id_json, person_id):
        yield unfinished_line


def _may_contain(text: bytes, id_json: bytes) -> bool:
    """Whether a person's id is in a text as `id_json`, or perhaps in another Unicode form: such a
    form has characters that JSON writes with a backslash, or that are not ASCII."""
    return id_json in text or b"\\u" in text or not text.isascii()


def _names(line: bytes, id_json: bytes, person_id: str) -> bool:
    return any(
        _may_contain(found, id_json) and name_in(found) == person_id
        for found in NAMES.findall(line)
    )


def _shown(line: bytes, person_id: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:  # cut off by a crash
        return {}
    if composed(str(row["person_id"])) == person_id:
        # Where another person is more similar, the detail says who.
        hidden = {"conflict_with", "detail"} if row.get("conflict_with") else {"conflict_with"}
        return {name: value for name, value in row.items() if name not in hidden}
    return {name: row.get(name) for name in OF_OTHERS}
