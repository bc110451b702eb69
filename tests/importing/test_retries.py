"""Imports that are tried again after a temporary error."""

import errno
import time
from pathlib import Path
from typing import Any

import pytest

from app.errors import Overloaded, StoreUnavailable
from app.importing import retries
from app.importing import runner as module
from app.importing.job_folder import ImportJob, JobFolder, JobState
from app.importing.jobs import ImportJobs
from app.importing.source_rows import ImportSourceError
from app.services import build_services
from app.settings import Settings
from app.store.records import Erasure
from tests.importing.archives import queue, two_people
from tests.waiting import until


@pytest.fixture
def archive(tmp_path: Path, photos: Path) -> Path:
    return two_people(tmp_path, photos)


def fail_first(
    monkeypatch: pytest.MonkeyPatch, error: Exception, times: int, import_id: str | None = None
) -> list[str]:
    """The first attempts at imports, or at one, end with an error. Returns the attempts, as ids."""
    run, begun = module.ImportRunner._run, list[str]()

    def failing(self: module.ImportRunner, job: ImportJob, *arguments: Any) -> None:
        begun.append(job.import_id)
        if import_id in (None, job.import_id) and begun.count(job.import_id) <= times:
            raise error
        run(self, job, *arguments)

    monkeypatch.setattr(module.ImportRunner, "_run", failing)
    return begun


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailable("The database does not answer; try again in a moment."),
        Overloaded("There was no memory for it in time."),
        OSError(errno.EMFILE, "Too many open files", "/secret/path"),
        MemoryError(),
    ],
)
def test_an_import_goes_on_after_an_error_that_passes(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """However few attempts a crash would leave it."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(module, "MOST_ATTEMPTS", 1)
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.2)
    begun = fail_first(monkeypatch, error, times=2)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    jobs.start()
    job = queue(jobs, archive)
    waiting = until(lambda: (found := jobs.get("default", job.import_id)).detail and found)
    assert waiting.state is JobState.RUNNING
    assert "tried again" in str(waiting.detail)
    assert "secret" not in str(waiting.detail)
    until(lambda: jobs.get("default", job.import_id).state is JobState.DONE)
    ended = jobs.get("default", job.import_id)
    assert (ended.detail, ended.counts["enrolled"], len(begun)) == (None, 2, 3)
    jobs.stop()
    services.close()


def test_a_process_that_cannot_be_started_for_lack_of_descriptors_is_an_error_that_passes() -> None:
    error = ImportSourceError("The process that reads archives cannot be started.")
    error.__cause__ = OSError(errno.ENFILE, "Too many open files in system")
    assert retries.is_temporary(error)
    assert not retries.is_temporary(ImportSourceError("The archive is damaged."))
    assert not retries.is_temporary(OSError(errno.EACCES, "Permission denied"))


def test_an_error_that_does_not_pass_ends_the_import(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_S", 0.01)
    begun = fail_first(monkeypatch, StoreUnavailable("The database does not answer."), times=1_000)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    jobs.start()
    job = queue(jobs, archive)
    until(lambda: jobs.get("default", job.import_id).state is JobState.FAILED)
    assert len(begun) == retries.MOST_TRIES
    assert "tried 10 times" in str(jobs.get("default", job.import_id).detail)
    assert not list((tmp_path / "data" / "imports").glob("*.zip"))
    jobs.stop()
    services.close()


def test_attempts_that_cannot_be_noted_are_no_ends_of_the_service(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no file can be opened, neither can that of the job."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_S", 0.01)
    lack = OSError(errno.EMFILE, "Too many open files")
    begun = fail_first(monkeypatch, lack, times=module.MOST_ATTEMPTS + 2)
    save = JobFolder.save

    def saving(self: JobFolder, job: ImportJob) -> None:
        if job.detail is not None:
            raise lack
        save(self, job)

    monkeypatch.setattr(JobFolder, "save", saving)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    jobs.start()
    job = queue(jobs, archive)
    until(lambda: jobs.get("default", job.import_id).state is JobState.DONE)
    assert len(begun) == module.MOST_ATTEMPTS + 3
    jobs.stop()
    services.close()


def test_an_attempt_that_gets_further_is_not_counted() -> None:
    tries = retries.Retries()
    pauses = [tries.after_attempt("one", rows) for rows in (0, 0, 7, 7, 5)]
    assert pauses == [1.0, 2.0, 1.0, 2.0, 4.0]
    assert tries.waits("one")
    assert not tries.waits("two")
    assert [tries.after_attempt("two", 0) for _ in range(retries.MOST_TRIES)][-4:] == [
        60,
        60,
        60,
        None,
    ]


@pytest.mark.parametrize("end", ["cancel", "delete the collection", "stop"])
def test_an_import_that_is_to_be_tried_again_ends_as_asked(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """At once, although its pause is not over. What stops is done by the next process at once."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 3600.0)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_S", 3600.0)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    services.gallery.create_collection("brief", {})
    jobs = ImportJobs(services)
    job, behind = queue(jobs, archive, "brief"), queue(jobs, archive)
    begun = fail_first(monkeypatch, StoreUnavailable("Away."), times=1, import_id=job.import_id)
    jobs.start()
    until(lambda: jobs.get("brief", job.import_id).detail)
    time.sleep(0.2)  # some looks at the folder
    assert begun == [job.import_id], "the order is kept"
    if end == "stop":
        jobs.stop()
        assert jobs.get("brief", job.import_id).state is JobState.RUNNING
        jobs = ImportJobs(services)
        jobs.start()
        until(lambda: jobs.get("brief", job.import_id).state is JobState.DONE)
    elif end == "cancel":
        jobs.cancel("brief", job.import_id)
        until(lambda: jobs.get("brief", job.import_id).state is JobState.CANCELLED)
    else:
        assert jobs.forget_collection("brief") is Erasure.DONE
    until(lambda: jobs.get("default", behind.import_id).state is JobState.DONE)
    assert not list((tmp_path / "data" / "imports").glob("*.zip"))
    jobs.stop()
    services.close()
