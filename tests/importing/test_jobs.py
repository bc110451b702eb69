"""The imports of a service: kept, taken up again, cancelled and ended, by one of its processes."""

import json
import os
import tarfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.errors import ImportNotFound, StoreFull
from app.importing import runner as module
from app.importing.job_folder import UNDER_WAY, ImportJob, JobFolder, JobState
from app.importing.jobs import ImportJobs
from app.importing.local import LocalImport
from app.importing.options import UploadOptions
from app.importing.outcomes import Counts, RowOutcome
from app.services import build_services
from app.settings import Settings
from app.store.records import Erasure
from tests.importing.archives import queue, two_people
from tests.waiting import until
from tests.writing import delete_collection


@pytest.fixture
def archive(tmp_path: Path, photos: Path) -> Path:
    return two_people(tmp_path, photos)


def test_reports_are_kept_for_some_days(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a service that nobody restarts."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    services = build_services(Settings(data_dir=tmp_path / "data", import_report_days=2))
    now = [datetime.now(UTC)]
    jobs = ImportJobs(services, lambda: now[0])
    jobs.start()
    job = queue(jobs, archive)
    until(lambda: jobs.get("default", job.import_id).state is JobState.DONE)
    now[0] += timedelta(days=1, hours=23)
    time.sleep(0.2)
    assert jobs.report("default", job.import_id).is_file()
    now[0] += timedelta(hours=2)
    until(lambda: jobs.of("default") == [])
    until(lambda: not list((tmp_path / "data" / "imports").glob("*.*")))
    jobs.stop()
    services.close()


def test_counts_never_go_back_when_an_import_ends(tmp_path: Path, archive: Path) -> None:
    """The record of a running import has older counts than memory. One that was read just before
    the end is not answered after it."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    job = queue(jobs, archive)
    read_before = job.model_copy(update={"state": JobState.RUNNING, "counts": {"enrolled": 1}})
    jobs.start()
    until(lambda: jobs.get("default", job.import_id).state is JobState.DONE)
    ended = jobs.get("default", job.import_id)
    assert ended.counts != read_before.counts
    until(lambda: jobs._runner.counted(read_before) == ended)
    jobs.stop()
    services.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_start_forgets_imports_of_a_collection_that_was_deleted(
    tmp_path: Path, archive: Path, again: bool
) -> None:
    """The process that deleted it was killed before it could; one of the same name is another."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    services.gallery.create_collection("brief", {})
    jobs = ImportJobs(services)
    jobs.start()
    job = queue(jobs, archive, "brief")
    kept = queue(jobs, archive)
    until(lambda: jobs.get("default", kept.import_id).state is JobState.DONE)
    jobs.stop()
    delete_collection(services.gallery, "brief")
    if again:
        services.gallery.create_collection("brief", {})
    after = ImportJobs(services)
    after.start()
    until(lambda: not list((tmp_path / "data" / "imports").glob(f"{job.import_id}*")))
    assert after.report("default", kept.import_id).is_file()
    after.stop()
    services.close()


@pytest.mark.parametrize("again", [False, True])
def test_an_import_that_waits_is_forgotten_with_a_collection_that_was_deleted(
    tmp_path: Path, archive: Path, again: bool
) -> None:
    """It must not go into another collection that has the name by then."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    services.gallery.create_collection("brief", {})
    job = queue(ImportJobs(services), archive, "brief")
    delete_collection(services.gallery, "brief")
    if again:
        services.gallery.create_collection("brief", {})
    jobs = ImportJobs(services)
    jobs.start()
    until(lambda: not list((tmp_path / "data" / "imports").glob(f"{job.import_id}*")))
    jobs.stop()
    if again:
        assert services.gallery.size("brief").persons == 0
    services.close()


def test_imports_of_a_deleted_collection_that_cannot_be_removed_are_pending(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection is deleted already: an error would say that it is not."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    queue(jobs, archive)

    def fails(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    with monkeypatch.context() as broken:
        broken.setattr(JobFolder, "forget", fails)
        assert jobs.forget_collection("default") is Erasure.PENDING
    assert jobs.forget_collection("default") is Erasure.DONE
    assert jobs.of("default") == []
    services.close()


def test_imports_go_on_after_an_error_that_nobody_foresaw(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that was short, and a job whose times have no zone: no version wrote it."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    damaged, waiting = queue(jobs, archive), queue(jobs, archive)
    state = tmp_path / "data" / "imports" / f"{damaged.import_id}.json"
    text = state.read_text()
    created = json.loads(text)["created_at"]
    state.write_text(text.replace(created, created.removesuffix("Z").partition("+")[0]))
    tidy, failures = JobFolder.tidy, [MemoryError()]

    def fails_once(folder: JobFolder, *arguments: Any) -> None:
        if failures:
            raise failures.pop()
        tidy(folder, *arguments)

    monkeypatch.setattr(JobFolder, "tidy", fails_once)
    jobs.start()
    until(lambda: jobs.get("default", waiting.import_id).state is JobState.DONE)
    jobs.stop()
    services.close()


def test_a_folder_that_cannot_be_used_is_reported(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it lasts, by the maintenance of the service."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    job = queue(jobs, archive)
    jobs.check()

    def full(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as failing:
        failing.setattr(JobFolder, "tidy", full)
        jobs.start()
        until(lambda: jobs._runner._failure is not None)
        for _ in range(3):
            with pytest.raises(PermissionError) as raised:
                jobs.check()
            assert len(raised.traceback) == 3
    until(lambda: jobs.get("default", job.import_id).state is JobState.DONE)
    jobs.check()
    jobs.stop()
    services.close()


@pytest.mark.filterwarnings("ignore:Exception in thread imports")
def test_the_lock_of_the_imports_is_released_however_their_thread_ends(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    queue(jobs, archive)

    def ends(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(JobFolder, "tidy", ends)
    jobs.start()
    until(lambda: not jobs._runner._thread.is_alive())
    held = JobFolder(tmp_path / "data" / "imports").become_runner()
    assert held is not None
    os.close(held)
    services.close()


def test_a_start_removes_what_a_crash_left_and_no_upload_under_way(
    tmp_path: Path, archive: Path
) -> None:
    services = build_services(Settings(data_dir=tmp_path / "data"))
    folder = tmp_path / "data" / "imports"
    other = ImportJobs(services)
    under_way = other.new_upload(".zip")
    left = folder / f"{1:032x}.zip"
    left.write_bytes(b"half")
    (folder / f"{1:032x}.json.new").write_bytes(b"{")
    (folder / f"{2:032x}.report.jsonl").write_bytes(b"")
    kept = {f"{3:032x}.zip", f"{3:032x}.json"}
    for name in kept:  # of another version, whose states this one cannot read
        (folder / name).write_bytes(b'{"import_id": 3}')
    jobs = ImportJobs(services)
    jobs.start()
    until(lambda: not left.exists())
    until(lambda: {path.name for path in folder.glob("*.*")} == {under_way.path.name, *kept})
    under_way.close()
    assert {path.name for path in folder.glob("*.*")} == kept
    jobs.stop()
    services.close()


def test_a_restart_goes_on(tmp_path: Path, archive: Path) -> None:
    """What was queued or under way when the service ended is there, and is done, after a start."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    job = queue(ImportJobs(services), archive)
    (archive,) = (tmp_path / "data" / "imports").glob("*.zip")
    assert archive.stat().st_mode & 0o077 == 0
    after = ImportJobs(services)
    after.start()
    until(lambda: after.get("default", job.import_id).state is JobState.DONE)
    assert after.get("default", job.import_id).counts["enrolled"] == 2
    assert not archive.exists()
    after.stop()
    services.close()


@pytest.mark.slow
def test_one_of_several_processes_does_them_and_all_answer(tmp_path: Path, archive: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    first, second = (build_services(settings) for _ in range(2))
    doing, other = ImportJobs(first), ImportJobs(second)
    doing.start()
    one = queue(doing, archive)
    until(lambda: other.get("default", one.import_id).state is JobState.DONE)
    other.start()
    two = queue(other, archive)
    until(lambda: other.get("default", two.import_id).state is JobState.DONE)
    assert doing.get("default", two.import_id).counts["skipped"] == 2
    assert len(other.report("default", two.import_id).read_text().splitlines()) == 3
    doing.stop()
    three = queue(doing, archive)
    until(lambda: other.get("default", three.import_id).state is JobState.DONE)
    other.cancel("default", one.import_id)
    assert {job.import_id for job in doing.of("default")} == {two.import_id, three.import_id}
    other.stop()
    first.close()
    second.close()


def test_no_two_processes_do_the_same_import(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[module.ImportRunner] = []
    may_end = threading.Event()

    def run(self: module.ImportRunner, *_: object) -> None:
        began.append(self)
        assert may_end.wait(60)

    monkeypatch.setattr(module.ImportRunner, "_run", run)
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    first, second = ImportJobs(services), ImportJobs(services)
    job = queue(first, archive)
    first.start()
    until(lambda: began)
    second.start()
    time.sleep(0.5)  # ten looks at the folder
    may_end.set()
    until(lambda: second.get("default", job.import_id).state is JobState.DONE)
    assert began == [first._runner]
    first.stop()
    second.stop()
    services.close()


def test_one_that_waits_is_cancelled_at_once(tmp_path: Path, archive: Path) -> None:
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    job = queue(jobs, archive)
    assert jobs.cancel("default", job.import_id).state is JobState.CANCELLED
    with pytest.raises(ImportNotFound, match="no report"):
        jobs.report("default", job.import_id)
    jobs.start()
    jobs.stop()
    assert services.gallery.size("default").templates == 0
    jobs.cancel("default", job.import_id)
    with pytest.raises(ImportNotFound):
        jobs.get("default", job.import_id)
    actions = [entry.members["action"] for entry in services.gallery.store.audit.latest(3)]
    assert sorted(actions) == ["import.cancelled", "import.created", "import.removed"]
    services.close()


def test_one_that_is_cancelled_reports_all_rows_that_it_stored(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows are stored together, and the import is cancelled as the first is reported."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    job = queue(jobs, archive)
    count = Counts.__call__

    def counting(self: Counts, outcome: RowOutcome) -> None:
        count(self, outcome)
        jobs.cancel("default", job.import_id)

    monkeypatch.setattr(Counts, "__call__", counting)
    jobs.start()
    until(lambda: jobs.get("default", job.import_id).state not in UNDER_WAY)
    rows = jobs.report("default", job.import_id).read_text().splitlines()[1:]
    assert len(rows) == services.gallery.size("default").templates == 2
    jobs.stop()
    services.close()


def test_a_full_disk_ends_no_import_twice(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is known here at once, and noted when there is room again."""
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    job = queue(jobs, archive)
    full = [False]
    save = JobFolder.save

    def saving(self: JobFolder, one: ImportJob) -> None:
        full[0] = full[0] or one.state is JobState.DONE
        if full[0]:
            raise OSError(28, "No space left on device")
        save(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "save", saving)
        jobs.start()
        until(lambda: jobs.get("default", job.import_id).state is JobState.DONE)
        upload = jobs.new_upload(".zip")
        with pytest.raises(StoreFull, match="No space left"):
            jobs.create("default", upload, UploadOptions())
        upload.close()
    until(lambda: ImportJobs(services).get("default", job.import_id).state is JobState.DONE)
    assert jobs.get("default", job.import_id).counts["enrolled"] == 2
    jobs.stop()
    services.close()


def test_an_end_that_is_not_written_yet_is_forgotten_with_its_collection(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    job = queue(jobs, archive)
    save, is_full = JobFolder.save, threading.Event()

    def saving(self: JobFolder, one: ImportJob) -> None:
        if one.state is JobState.DONE:
            is_full.set()
        if is_full.is_set():
            raise OSError(28, "No space left on device")
        save(self, one)

    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "save", saving)
        jobs.start()
        until(lambda: jobs.get("default", job.import_id).state is JobState.DONE)
        assert jobs.forget_collection("default") is Erasure.DONE
    services.gallery.create_collection("other", {})
    after = queue(jobs, archive, "other")
    until(lambda: jobs.get("other", after.import_id).state not in UNDER_WAY)
    assert jobs.of("default") == []
    with pytest.raises(ImportNotFound):
        jobs.get("default", job.import_id)
    jobs.stop()
    services.close()


def test_a_process_that_dies_at_the_end_of_an_import_leaves_it_ended(
    tmp_path: Path, archive: Path
) -> None:
    """Before it removed the archive; or after it did, on a disk too full to write the end."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    before = ImportJobs(services)
    ended, lost = queue(before, archive), queue(before, archive)
    folder = JobFolder(tmp_path / "data" / "imports")
    folder.save(ended.model_copy(update={"state": JobState.DONE}))
    folder.save(lost.model_copy(update={"state": JobState.RUNNING}))
    folder.archive(lost).unlink()
    jobs = ImportJobs(services)
    jobs.start()
    until(lambda: jobs.get("default", lost.import_id).state is JobState.FAILED)
    assert "archive is gone" in str(jobs.get("default", lost.import_id).detail)
    assert jobs.get("default", ended.import_id).state is JobState.DONE
    assert not folder.archives()
    jobs.cancel("default", lost.import_id)
    with pytest.raises(ImportNotFound):
        jobs.get("default", lost.import_id)
    jobs.stop()
    services.close()


def test_the_end_of_an_import_is_written_before_its_archive_is_removed(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process that is killed between them leaves an import that runs for ever."""
    services = build_services(Settings(data_dir=tmp_path / "data"))
    job = queue(ImportJobs(services), archive)
    folder, save = JobFolder(tmp_path / "data" / "imports"), JobFolder.save
    there = []

    def saving(self: JobFolder, one: ImportJob) -> None:
        there.append(self.archive(one).exists())
        if len(there) == 1:
            raise OSError(28, "No space left on device")
        save(self, one)

    monkeypatch.setattr(JobFolder, "save", saving)
    folder.end(job.model_copy(update={"state": JobState.DONE}))
    assert there == [True, False], "on a full disk the archive makes room"
    monkeypatch.undo()
    ended = folder.find(job.import_id)
    assert ended is not None
    assert ended.state is JobState.DONE
    services.close()


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A tar whose members are read for long and give no row."""
    path = tmp_path / "empty.tar"
    path.write_bytes(tarfile.TarInfo("empty").tobuf(tarfile.GNU_FORMAT) * 400_000)
    return path


@pytest.mark.parametrize("end", ["cancel", "stop"])
def test_an_archive_without_rows_ends_as_asked(tmp_path: Path, endless: Path, end: str) -> None:
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    jobs.start()
    job = queue(jobs, endless)
    until(lambda: jobs.get("default", job.import_id).state is JobState.RUNNING)
    time.sleep(0.1)  # it is read for more than a second
    if end == "cancel":
        jobs.cancel("default", job.import_id)
        until(lambda: jobs.get("default", job.import_id).state is JobState.CANCELLED)
    jobs.stop()
    job = jobs.get("default", job.import_id)
    expected = (JobState.CANCELLED, 1) if end == "cancel" else (JobState.RUNNING, 0)
    assert (job.state, job.attempts) == expected, "a stop is no failed attempt"
    services.close()


def test_what_ends_the_service_is_not_tried_for_ever(tmp_path: Path, archive: Path) -> None:
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    folder = JobFolder(services.settings.data_dir / "imports")
    hopeless, unlucky = queue(jobs, archive), queue(jobs, archive)
    for job, attempts in ((hopeless, module.MOST_ATTEMPTS), (unlucky, module.MOST_ATTEMPTS - 1)):
        died = {"state": JobState.RUNNING, "attempts": attempts}
        folder.save(job.model_copy(update=died))
    jobs.start()
    until(lambda: jobs.get("default", unlucky.import_id).state is JobState.DONE)
    ended = jobs.get("default", hopeless.import_id)
    assert ended.state is JobState.FAILED
    assert "ended 5 times" in str(ended.detail)
    assert jobs.get("default", unlucky.import_id).counts["enrolled"] == 2
    jobs.stop()
    services.close()


def test_a_failure_says_what_happened_and_where_to_look(
    tmp_path: Path,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(LocalImport, "run", failing)
    services = build_services(Settings(data_dir=tmp_path / "data"))
    jobs = ImportJobs(services)
    jobs.start()
    job = queue(jobs, archive)
    until(lambda: jobs.get("default", job.import_id).state is JobState.FAILED)
    detail = str(jobs.get("default", job.import_id).detail)
    assert "ZeroDivisionError" in detail
    assert f"import_id {job.import_id}" in detail
    jobs.stop()
    services.close()
