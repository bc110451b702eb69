"""Imports that a running service does: one after the other, taken up again after a restart."""

import logging
import queue
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from app.errors import ImportNotFound, LikenessError, Overloaded, StoreFull
from app.importing.local import LocalImport
from app.importing.options import ImportOptions, ImportStopped
from app.importing.outcomes import Counts, Outcome, report_writer
from app.importing.sources import SourceOptions, rows_of
from app.services import Services
from app.telemetry.logs import log

# Archives on disk that wait for their turn.
MOST_WAITING = 32


class JobState(StrEnum):
    """`stopped`: at a row, as it was asked to."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    CANCELLED = "cancelled"


WAITING = (JobState.QUEUED, JobState.RUNNING)


class ImportJob(BaseModel):
    """One import: what was asked, how far it is, and why it ended early. `counts` are those since
    the service started, where it was restarted meanwhile."""

    model_config = ConfigDict(frozen=True)

    import_id: str
    collection: str
    state: JobState
    created_at: datetime
    finished_at: datetime | None = None
    archive: str
    options: ImportOptions
    counts: dict[str, object] = {}
    detail: str | None = None


class _Ended(Exception):
    """The job was cancelled, or the service stops."""


class ImportJobs:
    """The jobs of one service, in a folder of its own: their states, archives and reports."""

    def __init__(
        self,
        services: Services,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.folder = services.settings.data_dir / "imports"
        self._services = services
        self._clock = clock
        self._jobs: dict[str, ImportJob] = {}
        self._counts: dict[str, Counts] = {}  # of the one that runs
        self._cancelled: set[str] = set()
        self._unwanted: set[str] = set()  # to be forgotten when they end
        # Between looking at a job's state and changing it.
        self._lock = threading.RLock()
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="imports", daemon=True)

    def start(self) -> None:
        """Take up what an earlier run of the service left; uploads that it did not finish go."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                found.append(ImportJob.model_validate_json(path.read_bytes()))
            except ValueError as error:
                log(logging.WARNING, f"{path} is no import job", error)
        archives = {job.archive for job in found}
        for path in self.folder.glob("*"):
            if path.name not in archives and not path.name.endswith((".json", ".report.jsonl")):
                path.unlink()
        for job in sorted(found, key=lambda one: one.created_at):
            self._jobs[job.import_id] = job
            if job.state in WAITING:
                self._waiting.put(job.import_id)
        self._forget_old()
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way goes on after the next start."""
        self._stopping = True
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def new_archive(self, suffix: str) -> Path:
        """A place for an upload; its name is the import's id. Readable by its owner alone. Raises
        Overloaded."""
        if sum(job.state in WAITING for job in list(self._jobs.values())) >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} imports are waiting; send this one later.")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{uuid.uuid4().hex}{suffix}"
        path.touch(mode=0o600)
        return path

    def create(self, collection: str, archive: Path, options: ImportOptions) -> ImportJob:
        """Queue the import of an archive that `new_archive` gave the place of. Raises StoreFull."""
        job = ImportJob(
            import_id=archive.name.split(".")[0],
            collection=collection,
            state=JobState.QUEUED,
            created_at=self._clock(),
            archive=archive.name,
            options=options,
        )
        try:
            self._save(job)
        except OSError as error:
            archive.unlink(missing_ok=True)
            raise StoreFull(f"The import cannot be noted: {error.strerror}.") from error
        self._waiting.put(job.import_id)
        return job

    def get(self, collection: str, import_id: str) -> ImportJob:
        """One job. Raises ImportNotFound."""
        job = self._jobs.get(import_id)
        if job is None or job.collection != collection:
            raise ImportNotFound(f"The collection '{collection}' has no import '{import_id}'.")
        return self._counted(job)

    def of(self, collection: str) -> list[ImportJob]:
        """A collection's jobs, the newest first."""
        mine = [job for job in list(self._jobs.values()) if job.collection == collection]
        mine.sort(key=lambda job: job.created_at, reverse=True)
        return [self._counted(job) for job in mine]

    def cancel(self, collection: str, import_id: str) -> ImportJob:
        """End a job that is queued or running, or forget one that has ended, with its report; what
        it enrolled stays. Raises ImportNotFound."""
        with self._lock:
            job = self.get(collection, import_id)
            if job.state is JobState.QUEUED:
                self._end(job, JobState.CANCELLED)
            elif job.state is JobState.RUNNING:
                self._cancelled.add(import_id)
            else:
                self._forget(job)
                return job
            return self.get(collection, import_id)

    def forget_collection(self, collection: str) -> None:
        """Cancel and forget what belongs to a collection that was deleted: reports name people."""
        with self._lock:
            for job in self.of(collection):
                if self.cancel(collection, job.import_id).state is JobState.RUNNING:
                    self._unwanted.add(job.import_id)
                else:
                    self._forget(job)

    def report(self, job: ImportJob) -> Path:
        """Where the outcome of each row is written, as JSON Lines."""
        return self.folder / f"{job.import_id}.report.jsonl"

    # --- the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        while (import_id := self._waiting.get()) is not None and not self._stopping:
            with self._lock:
                job = self._jobs.get(import_id)
                if job is None or job.state not in WAITING:
                    continue
                job = job.model_copy(update={"state": JobState.RUNNING})
                self._jobs[import_id] = job
            state, detail = self._outcome(job)
            with self._lock:
                if state is not None:
                    self._end(self._counted(job), state, detail)
                if import_id in self._unwanted:
                    self._forget(job)
                self._counts.clear()
                self._cancelled.discard(import_id)
            self._forget_old()

    def _outcome(self, job: ImportJob) -> tuple[JobState | None, str | None]:
        """Do it; how it ended, or None where the service stops meanwhile."""
        try:
            self._run(job)
        except _Ended:
            return None if self._stopping else JobState.CANCELLED, None
        except ImportStopped as reason:
            return JobState.STOPPED, reason.detail
        except LikenessError as error:
            return JobState.FAILED, error.detail
        except OSError as error:
            log(logging.ERROR, "an import failed", error)
            return JobState.FAILED, f"The service's disk: {error.strerror}."
        except Exception as error:  # noqa: BLE001 (the next job must still run)
            log(logging.ERROR, "an import failed", error)
            return JobState.FAILED, "An error of ours; see the log."
        return JobState.DONE, None

    def _run(self, job: ImportJob) -> None:
        services = self._services
        record = services.gallery.require(job.collection)
        # A table that was uploaded brings embeddings: the service's own files are not its photos.
        given = SourceOptions(
            record.embedding_space,
            services.settings.max_image_bytes,
            images=self.folder / "no-photos",
        )
        counts = self._counts[job.import_id] = Counts()
        # Half of the cores unless told otherwise: people are waiting for the others.
        workers = services.settings.import_workers or max(1, services.scheduler.workers // 2)
        with report_writer(self.report(job)) as write:

            def tell(outcome: Outcome) -> None:
                counts(outcome)
                write(outcome)
                if self._stopping or job.import_id in self._cancelled:
                    raise _Ended

            rows = rows_of([str(self.folder / job.archive)], given)
            LocalImport(services, record, job.options, workers).run(rows, tell)

    def _counted(self, job: ImportJob) -> ImportJob:
        counts = self._counts.get(job.import_id)
        return job if counts is None else job.model_copy(update={"counts": counts.members()})

    def _end(self, job: ImportJob, state: JobState, detail: str | None = None) -> None:
        update = {"state": state, "finished_at": self._clock(), "detail": detail}
        ended = self._jobs[job.import_id] = job.model_copy(update=update)
        (self.folder / job.archive).unlink(missing_ok=True)
        try:
            self._save(ended)
        except OSError as error:  # after a restart it is done again, which changes nothing
            log(logging.ERROR, "the end of an import cannot be noted", error)

    def _forget(self, job: ImportJob) -> None:
        self._jobs.pop(job.import_id, None)
        for path in (self.report(job), self.folder / f"{job.import_id}.json"):
            path.unlink(missing_ok=True)

    def _forget_old(self) -> None:
        kept = timedelta(days=self._services.settings.import_report_days)
        for job in list(self._jobs.values()):
            if job.finished_at is not None and self._clock() - job.finished_at > kept:
                self._forget(job)

    def _save(self, job: ImportJob) -> None:
        """On disk first: what was answered is known after a restart."""
        path = self.folder / f"{job.import_id}.json"
        new = path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(job.model_dump_json(), encoding="utf-8")
        new.replace(path)
        self._jobs[job.import_id] = job
