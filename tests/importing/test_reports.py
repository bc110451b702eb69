"""Deleted people are erased from the reports of imports."""

import errno
import json
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.errors import DeadlineExceeded, StoreFull
from app.importing import reports
from app.importing.job_folder import ImportJob, JobFolder, JobState
from app.importing.options import UploadOptions
from app.importing.outcomes import RowOutcome, RowResult, report_writer
from app.importing.reports import LAPSES_AFTER, SPOOL, ReportEraser, erase_people, rows_about
from app.store.records import Erasure

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ROWS = [
    RowOutcome("a/ada/1.jpg", "ada", RowResult.ENROLLED, face_id="f1"),
    RowOutcome("a/bob/1.jpg", "bob", RowResult.ENROLLED, face_id="f2"),
    RowOutcome("a/ada/2.jpg", "ada", RowResult.REJECTED, "no_face", "No face of ada was found."),
    RowOutcome("x", "b", RowResult.REJECTED, "conflict", "", None, "ada", 0.5),
    RowOutcome("a/adam/1.jpg", "adam", RowResult.SKIPPED, "duplicate"),
    RowOutcome('a/"ada\\/1.jpg', '"ada\\', RowResult.ENROLLED, face_id="f3"),
]


class Imports:
    """A folder of imports, and the people of its collections."""

    def __init__(self, path: Path) -> None:
        self.folder = JobFolder(path)
        path.mkdir()
        self.people: set[tuple[str, str]] = set()
        self.now = NOW
        self.eraser = ReportEraser(
            self.folder, lambda *person: person in self.people, lambda: self.now
        )

    def add(self, number: int, state: JobState, collection: str = "default") -> ImportJob:
        job = ImportJob(
            import_id=f"{number:032x}", collection=collection, state=state, created_at=NOW,
            archive=f"{number:032x}.zip", options=UploadOptions(),
            detail="a/ada/2.jpg: no face" if state is JobState.STOPPED else None,
        )  # fmt: skip
        self.folder.save(job)
        with report_writer(self.folder.report(job)) as write:
            for row in ROWS:
                write(row)
        return job

    def rows(self, job: ImportJob) -> list[RowOutcome]:
        return read(self.folder.report(job))

    def spool(self) -> bytes:
        path = self.folder.path / SPOOL
        return path.read_bytes() if path.exists() else b""


def read(report: Path) -> list[RowOutcome]:
    """As a client reads it."""
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    return [RowOutcome(**{**row, "result": RowResult(row["result"])}) for row in rows]


@pytest.fixture
def imports(tmp_path: Path) -> Imports:
    return Imports(tmp_path / "imports")


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "one.report.jsonl"
    with report_writer(path) as write:
        for row in ROWS:
            write(row)
    return path


def test_a_line_keeps_its_place_result_and_reason(report: Path) -> None:
    before = report.read_bytes()
    erase_people(report, {"ada"})
    after = report.read_bytes()
    assert list(map(len, after.splitlines())) == list(map(len, before.splitlines()))
    rows = read(report)
    assert [(row.result, row.reason) for row in rows] == [(r.result, r.reason) for r in ROWS]
    assert rows[0] == RowOutcome("", "", RowResult.ENROLLED)
    assert rows[2] == RowOutcome("", "", RowResult.REJECTED, "no_face")
    assert rows[3] == RowOutcome("x", "b", RowResult.REJECTED, "conflict")
    assert [rows[i] for i in (1, 4, 5)] == [ROWS[i] for i in (1, 4, 5)]


@pytest.mark.parametrize("person", ['"ada\\', "adam"])
def test_names_are_compared_whole(report: Path, person: str) -> None:
    erase_people(report, {person})
    assert [row.person_id for row in read(report)] == [
        "" if row.person_id == person else row.person_id for row in ROWS
    ]


def test_spellings_of_one_id_are_one(tmp_path: Path) -> None:
    path = tmp_path / "one.report.jsonl"
    with report_writer(path) as write:
        for form in ("NFC", "NFD"):
            write(RowOutcome("p", unicodedata.normalize(form, "Zoé"), RowResult.ENROLLED))
    erase_people(path, {"Zoé"})
    assert [row.person_id for row in read(path)] == ["", ""]


def test_both_persons_of_a_line_are_erased_one_after_the_other(report: Path) -> None:
    for person in ("ada", "b"):
        erase_people(report, {person})
    assert [row.person_id for row in read(report)] == ["", "bob", "", "", "adam", '"ada\\']


def test_a_line_that_a_crash_cut_off_is_blanked(report: Path) -> None:
    line = json.dumps(asdict(ROWS[0]))
    with report.open("a") as file:
        file.write(line[: line.index("result")])
    erase_people(report, {"ada"})
    assert report.read_bytes().endswith(b" " * 20)
    assert b'"ada"' not in report.read_bytes()


def test_nothing_to_erase_where_there_are_no_reports(imports: Imports) -> None:
    assert imports.eraser.note("default", "ada") is Erasure.DONE
    imports.add(1, JobState.DONE, "other")
    assert imports.eraser.note("default", "ada") is Erasure.DONE
    assert imports.spool() == b""
    imports.eraser.round()


def test_an_import_that_has_not_begun_is_erased_when_it_ends(imports: Imports) -> None:
    """It rejects rows about the person, who is not there any more."""
    job = imports.add(1, JobState.QUEUED)
    imports.folder.report(job).unlink()
    assert imports.eraser.note("default", "ada") is Erasure.PENDING
    imports.eraser.round()
    assert imports.spool() != b""
    imports.add(1, JobState.DONE)
    imports.eraser.round()
    assert "ada" not in {row.person_id for row in imports.rows(job)}
    assert imports.spool() == b""


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_detail_that_names_the_person_is_erased(imports: Imports, form: str) -> None:
    """A zip of a Mac has its paths in Form D."""
    job = imports.add(1, JobState.STOPPED)
    detail = unicodedata.normalize(form, "a/Zoë/2.jpg: no face")
    imports.folder.save(job.model_copy(update={"detail": detail}))
    imports.eraser.note("default", "Zoë")
    imports.eraser.round()
    left = imports.folder.find(job.import_id)
    assert left is not None
    assert left.detail is None


def test_one_report_a_round_for_everybody(imports: Imports) -> None:
    jobs = [imports.add(number, JobState.DONE) for number in (1, 2)]
    other = imports.add(3, JobState.DONE, "other")
    for person in ("ada", "bob"):
        assert imports.eraser.note("default", person) is Erasure.PENDING
    imports.eraser.round()
    erased = [{"ada", "bob"} & {row.person_id for row in imports.rows(job)} for job in jobs]
    assert sorted(map(len, erased)) == [0, 2]
    imports.eraser.round()
    for job in jobs:
        assert [row.person_id for row in imports.rows(job)] == ["", "", "", "b", "adam", '"ada\\']
        assert all(row.conflict_with is None for row in imports.rows(job))
    assert imports.rows(other) == ROWS
    assert imports.spool() == b"", "who was deleted is not named there either"


def test_a_report_that_is_being_written_comes_last(imports: Imports) -> None:
    """Its import may just have enrolled the person, and write so afterwards."""
    job = imports.add(1, JobState.RUNNING)
    imports.eraser.note("default", "ada")
    for _ in range(3):
        imports.eraser.round()
    assert imports.rows(job) == ROWS
    imports.folder.save(job.model_copy(update={"state": JobState.DONE}))
    imports.eraser.round()
    assert imports.rows(job)[0].person_id == ""
    assert imports.spool() == b""


def test_the_reason_why_an_import_stopped_names_no_person(imports: Imports) -> None:
    job = imports.add(1, JobState.STOPPED)
    imports.eraser.note("default", "ada")
    imports.eraser.round()
    found = imports.folder.find(job.import_id)
    assert found is not None
    assert found.detail is None


def test_a_deletion_that_did_not_come_about_erases_nothing(imports: Imports) -> None:
    job = imports.add(1, JobState.DONE)
    imports.people = {("default", "ada")}
    imports.eraser.note("default", "ada")
    imports.eraser.round()
    assert imports.spool() != b"", "it may come about yet"
    imports.now += LAPSES_AFTER + timedelta(seconds=1)
    imports.eraser.round()
    assert (imports.spool(), imports.rows(job)) == (b"", ROWS)


def test_a_deletion_that_takes_a_moment(imports: Imports) -> None:
    job = imports.add(1, JobState.DONE)
    imports.people = {("default", "ada")}
    imports.eraser.note("default", "ada")
    imports.eraser.round()
    imports.people = set()
    imports.eraser.round()
    assert imports.rows(job)[0].person_id == ""


def test_an_import_that_was_forgotten(imports: Imports) -> None:
    job = imports.add(1, JobState.DONE)
    imports.eraser.note("default", "ada")
    imports.folder.forget(job)
    imports.eraser.round()
    assert imports.spool() == b""


def test_a_note_that_a_crash_cut_off(imports: Imports) -> None:
    job = imports.add(1, JobState.DONE)
    imports.eraser.note("default", "bob")
    spool = imports.folder.path / SPOOL
    spool.write_bytes(spool.read_bytes()[:-20])
    imports.eraser.note("default", "ada")
    imports.eraser.round()
    assert [row.person_id for row in imports.rows(job)][:3] == ["", "bob", ""]
    assert imports.spool() == b""


def test_a_full_disk_refuses_the_deletion(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    imports.add(1, JobState.DONE)
    monkeypatch.setattr(reports.os, "fsync", full)
    with pytest.raises(StoreFull):
        imports.eraser.note("default", "ada")


def test_a_deletion_while_another_is_being_erased(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = imports.add(1, JobState.DONE)
    imports.eraser.note("default", "ada")

    def erase(report: Path, people: set[str]) -> None:
        erase_people(report, people)
        imports.now += timedelta(seconds=1)
        imports.eraser.note("default", "bob")

    with monkeypatch.context() as patched:
        patched.setattr(reports, "erase_people", erase)
        imports.eraser.round()
    assert imports.eraser.is_pending
    imports.eraser.round()
    assert [row.person_id for row in imports.rows(job)] == ["", "", "", "b", "adam", '"ada\\']
    assert not imports.eraser.is_pending


def test_two_processes_do_not_rewrite_one_line(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth row names "b", and "ada" as who is similar."""
    job = imports.add(1, JobState.DONE)
    imports.eraser.note("default", "ada")
    other = ReportEraser(imports.folder, lambda *_: False, lambda: NOW)

    def os_pwrite(file: int, line: bytes, start: int) -> int:
        monkeypatch.undo()
        other.note("default", "b")
        other.round()
        return os.pwrite(file, line, start)

    report = imports.folder.report(job)
    report.write_bytes(report.read_bytes().splitlines(keepends=True)[3])
    monkeypatch.setattr(reports.os, "pwrite", os_pwrite)
    imports.eraser.round()
    imports.eraser.round()
    assert [row.person_id for row in imports.rows(job)] == [""]


def test_several_processes_do_rounds(imports: Imports) -> None:
    jobs = [imports.add(number, JobState.DONE) for number in range(8)]
    for number in range(20):
        imports.eraser.note("default", ["ada", "bob", "adam"][number % 3])
    others = [ReportEraser(imports.folder, lambda *_: False, lambda: NOW) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(8):
            list(threads.map(ReportEraser.round, others))
    assert imports.spool() == b""
    left = {row.person_id for job in jobs for row in imports.rows(job)}
    assert left == {"", "b", '"ada\\'}


def test_the_error_of_a_full_disk_names_what_was_not_written(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is the deletion of a person, and knows of no import."""
    imports.add(1, JobState.DONE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ReportEraser, "_append", full)
    with pytest.raises(StoreFull, match=r"^The note for reports of imports cannot be written"):
        imports.eraser.note("default", "ada")


def test_one_report_that_cannot_be_erased_keeps_no_other_from_it(imports: Imports) -> None:
    jobs = [imports.add(number, JobState.DONE) for number in range(3)]
    imports.eraser.note("default", "ada")
    first, *others = imports.eraser._notes()[0].imports
    report = imports.folder.report(next(job for job in jobs if job.import_id == first))
    kept = report.read_bytes()
    report.unlink()
    report.mkdir()
    for _ in range(3):
        with pytest.raises(IsADirectoryError):
            imports.eraser.round()
    for job in jobs:
        if job.import_id in others:
            assert [row.person_id for row in imports.rows(job)][:3] == ["", "bob", ""]
    report.rmdir()
    report.write_bytes(kept)
    imports.eraser.round()
    assert b'"ada"' not in report.read_bytes()
    assert not imports.eraser.is_pending


def test_what_is_shown_to_a_person_names_nobody_else(imports: Imports) -> None:
    job = imports.add(1, JobState.STOPPED)
    with report_writer(imports.folder.report(job)) as write:
        write(
            RowOutcome(
                "ada/1.jpg", "ada", RowResult.REJECTED, "conflict",
                "The face resembles grace.hopper more than anybody else.",
                conflict_with="grace.hopper", similarity=0.9,
            )
        )  # fmt: skip
    imports.folder.save(job.model_copy(update={"detail": "ada/1.jpg: resembles grace.hopper"}))
    for person_id in ("ada", "grace.hopper", "a"):
        rows, more = rows_about(imports.folder, "default", person_id)
        assert (len(rows), more) == (0 if person_id == "a" else 1, False)
        for other in {"ada", "grace.hopper"} - {person_id}:
            assert other not in json.dumps(rows)


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 20])
def test_rows_are_found_in_any_piece_and_in_any_spelling(
    imports: Imports, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Even one whose composed form is ASCII: the sign of Kelvin is a K."""
    monkeypatch.setattr(reports, "PIECE", piece)
    job = imports.add(1, JobState.RUNNING)
    path = imports.folder.report(job)
    people = ["K", "\u212a", "KK", 'K"', "é", "e\u0301", "e"]
    with report_writer(path) as write:
        for name in people:
            write(RowOutcome("a/1.jpg", name, RowResult.ENROLLED))
        write(RowOutcome("b/1.jpg", "b", RowResult.ENROLLED, conflict_with="K"))
    with path.open("ab") as file:
        file.write(json.dumps({"place": "ß", "person_id": "é"}, ensure_ascii=False).encode())
    found = {name: len(rows_about(imports.folder, "default", name)[0]) for name in people}
    assert found == {"K": 3, "\u212a": 3, "KK": 1, 'K"': 1, "é": 3, "e\u0301": 3, "e": 1}


def test_reading_rows_ends_where_nobody_waits_for_them(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "PIECE", 10)
    with report_writer(imports.folder.report(imports.add(1, JobState.DONE))) as write:
        write(RowOutcome("ada/1.jpg", "ada", RowResult.ENROLLED))

    def gone() -> None:
        raise DeadlineExceeded("The client has disconnected.")

    with pytest.raises(DeadlineExceeded):
        rows_about(imports.folder, "default", "ada", gone)


def test_a_running_import_costs_no_look_at_the_persons(imports: Imports) -> None:
    """It may run for hours, a round is done each second, and there may be thousands of notes."""
    imports.add(1, JobState.RUNNING)
    imports.eraser.note("default", "ada", "bob")
    imports.eraser._is_there = lambda *_: pytest.fail("a person was looked for")
    imports.eraser.round()
    assert imports.eraser.is_pending
