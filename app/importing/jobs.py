"""Imports that a running service does: one after the other, taken up again after a restart."""

import logging
import queue
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from app.decision.policy import FaceSelection
from app.errors import ImportNotFound, LikenessError
from app.importing.local import ImportOptions, LocalImport, OnConflict
from app.importing.outcomes import Counts, Outcome, Tell, report_writer
from app.importing.sources import SourceOptions, rows_of
from app.services import Services
from app.telemetry.logs import log

# Rows between two states on disk.
SAVE_EVERY = 50


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


WAITING = (JobState.QUEUED, JobState.RUNNING)


class ImportJob(BaseModel):
    """One import: what was asked, how far it is, and why it failed. `counts` are those since the
    service started, where it was restarted meanwhile."""

    model_config = ConfigDict(frozen=True)

    import_id: str
    collection: str
    state: JobState
    created_at: datetime
    finished_at: datetime | None = None
    archive: str
    face: FaceSelection = FaceSelection.ONLY
    near_duplicate: float | None = None
    on_conflict: OnConflict | None = None
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
        self._cancelled: set[str] = set()
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="imports", daemon=True)

    def start(self) -> None:
        """Take up what an earlier run of the service left."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                found.append(ImportJob.model_validate_json(path.read_bytes()))
            except ValueError as error:
                log(logging.WARNING, f"{path} is no import job", error)
        for job in sorted(found, key=lambda one: one.created_at):
            self._jobs[job.import_id] = job
            if job.state in WAITING:
                self._waiting.put(job.import_id)
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way goes on after the next start."""
        self._stopping = True
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def new_archive(self, suffix: str) -> Path:
        """A place for an upload; its name is the import's id. Readable by its owner alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{uuid.uuid4().hex}{suffix}"
        path.touch(mode=0o600)
        return path

    def create(self, collection: str, archive: Path, options: ImportOptions) -> ImportJob:
        """Queue the import of an archive that `new_archive` gave the place of."""
        job = ImportJob(
            import_id=archive.name.split(".")[0],
            collection=collection,
            state=JobState.QUEUED,
            created_at=self._clock(),
            archive=archive.name,
            face=options.face,
            near_duplicate=options.near_duplicate,
            on_conflict=options.on_conflict,
        )
        self._save(job)
        self._waiting.put(job.import_id)
        return job

    def get(self, collection: str, import_id: str) -> ImportJob:
        """One job. Raises ImportNotFound."""
        job = self._jobs.get(import_id)
        if job is None or job.collection != collection:
            raise ImportNotFound(f"The collection '{collection}' has no import '{import_id}'.")
        return job

    def of(self, collection: str) -> list[ImportJob]:
        """A collection's jobs, the newest first."""
        mine = [job for job in list(self._jobs.values()) if job.collection == collection]
        return sorted(mine, key=lambda job: job.created_at, reverse=True)

    def cancel(self, collection: str, import_id: str) -> ImportJob:
        """End a job that is queued or running, or forget one that has ended, with its report; what
        it enrolled stays. Raises ImportNotFound."""
        job = self.get(collection, import_id)
        if job.state not in WAITING:
            self._forget(job)
            return job
        with self._lock:
            self._cancelled.add(import_id)
        if job.state is JobState.QUEUED:
            self._end(job, JobState.CANCELLED)
        return self.get(collection, import_id)

    def _forget(self, job: ImportJob) -> None:
        for path in (self.report(job), self.folder / f"{job.import_id}.json"):
            path.unlink(missing_ok=True)
        self._jobs.pop(job.import_id, None)

    def report(self, job: ImportJob) -> Path:
        """Where the outcome of each row is written, as JSON Lines."""
        return self.folder / f"{job.import_id}.report.jsonl"

    # --- the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        while (import_id := self._waiting.get()) is not None and not self._stopping:
            job = self._jobs[import_id]
            if job.state not in WAITING:
                continue
            try:
                self._run(job)
            except _Ended:
                if not self._stopping:
                    self._end(self._jobs[import_id], JobState.CANCELLED)
            except LikenessError as error:
                self._end(self._jobs[import_id], JobState.FAILED, error.detail)
            except Exception as error:  # noqa: BLE001 (the next job must still run)
                log(logging.ERROR, "an import failed", error)
                self._end(self._jobs[import_id], JobState.FAILED, "An error of ours; see the log.")

    def _run(self, job: ImportJob) -> None:
        services = self._services
        record = services.gallery.require(job.collection)
        options = ImportOptions(job.face, job.near_duplicate, job.on_conflict)
        # A table that was uploaded brings embeddings: the service's own files are not its photos.
        given = SourceOptions(
            record.embedding_space,
            services.settings.max_image_bytes,
            images=self.folder / "no-photos",
        )
        counts = Counts()
        self._save(job.model_copy(update={"state": JobState.RUNNING}))
        # Half of the cores at most: people are waiting for the others.
        workers = max(1, services.scheduler.workers // 2)
        with report_writer(self.report(job)) as write:
            tell = self._telling(job.import_id, counts, write)
            rows = rows_of([str(self.folder / job.archive)], given)
            LocalImport(services, record, options, workers).run(rows, tell)
        self._save(self._jobs[job.import_id].model_copy(update={"counts": counts.members()}))
        self._end(self._jobs[job.import_id], JobState.DONE)

    def _telling(self, import_id: str, counts: Counts, write: Tell) -> Tell:
        def tell(outcome: Outcome) -> None:
            counts(outcome)
            write(outcome)
            if self._stopping or import_id in self._cancelled:
                raise _Ended
            job = self._jobs[import_id].model_copy(update={"counts": counts.members()})
            if counts.total % SAVE_EVERY == 0:
                self._save(job)
            else:
                self._jobs[import_id] = job

        return tell

    def _end(self, job: ImportJob, state: JobState, detail: str | None = None) -> None:
        update = {"state": state, "finished_at": self._clock(), "detail": detail}
        self._save(job.model_copy(update=update))
        (self.folder / job.archive).unlink(missing_ok=True)

    def _save(self, job: ImportJob) -> None:
        """On disk first: what was answered is known after a restart."""
        path = self.folder / f"{job.import_id}.json"
        new = path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(job.model_dump_json(), encoding="utf-8")
        new.replace(path)
        self._jobs[job.import_id] = job
