"""The thread that does the imports of a data folder, one after the other."""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

from app.errors import CollectionNotFound, LikenessError
from app.importing.job_folder import UNDER_WAY, ImportJob, JobFolder, JobState, id_of
from app.importing.local import LocalImport
from app.importing.options import ImportStopped
from app.importing.outcomes import Counts, RowOutcome, RowResult, report_writer
from app.importing.reading import reading
from app.importing.retries import MOST_TRIES, Retries, described, is_temporary
from app.importing.source_options import SourceOptions
from app.importing.stop_check import ImportEnded, StopCheck
from app.services import Services
from app.store.actor import acting_as
from app.store.records import CollectionRecord
from app.telemetry.logs import log

# How often the process that runs imports looks for new jobs of other processes, checks whether the
# running import was cancelled, and writes its progress.
LOOK_EVERY_S = 0.5
# Rows that enrolled nobody and are listed in a report; more are only counted.
MOST_WITHOUT = 100_000
# Starts of an import during which the service died before anybody was enrolled.
MOST_ATTEMPTS = 5
TIDY_EVERY = timedelta(hours=1)


class ImportRunner:
    """Does what is queued, if this process is the one that holds the folder's lock."""

    def __init__(
        self, services: Services, folder: JobFolder, clock: Callable[[], datetime]
    ) -> None:
        self._services = services
        self._folder = folder
        self._clock = clock
        self._counts: dict[str, Counts] = {}  # of the one that runs here
        self._unsaved: dict[str, ImportJob] = {}  # ended here, on a full disk
        self._retries = Retries()
        self._failure: Exception | None = None  # of the last look at the folder
        self._tidied_at = datetime.min.replace(tzinfo=UTC)
        self._stopping = threading.Event()
        self._look = threading.Event()
        self._thread = threading.Thread(target=self._work, name="imports", daemon=True)

    def start(self) -> None:
        """Do what is queued, also what an earlier run of the service left."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way is continued after the next start."""
        self._stopping.set()
        self._look.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self) -> None:
        """Raise the error of the last look at the folder, if there was one."""
        failure = self._failure
        if failure is not None:
            raise failure.with_traceback(None)  # each raise would make it longer

    def wake(self) -> None:
        """Look for a new job now."""
        self._look.set()

    def find(self, import_id: str) -> ImportJob | None:
        """One job, even if its end could not be written to the folder."""
        return self._unsaved.get(import_id) or self._folder.find(import_id)

    def forget(self, job: ImportJob) -> None:
        """Remove all of a job that has ended."""
        self._unsaved.pop(job.import_id, None)
        self._folder.forget(job)

    def counted(self, job: ImportJob) -> ImportJob:
        """With the counts of this moment, if it runs here."""
        if job.state is not JobState.RUNNING:
            return job
        counts = self._counts.get(job.import_id)
        if counts is None:  # another process runs it, or it has ended since the job was read
            return self.find(job.import_id) or job
        return job.model_copy(update={"counts": counts.members()})

    def end(self, job: ImportJob, state: JobState, detail: str | None = None) -> None:
        """Write that a job has ended, and remove its archive."""
        ended = job.model_copy(
            update={
                "state": state,
                "finished_at": self._clock(),
                "detail": detail,
                "cancelling": False,
            }
        )
        try:
            self._folder.end(ended)
        except OSError as error:
            log(logging.ERROR, "the end of an import cannot be written", error)
            self._unsaved[job.import_id] = ended

    # --- the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        """Acquire the folder's lock, then do the imports that are queued."""
        held: int | None = None
        try:
            while not self._stopping.is_set():
                self._look.clear()
                try:
                    held = held or self._folder.become_runner()
                    if held is not None:
                        self._do_queued()
                    self._failure = None
                except Exception as error:  # noqa: BLE001 (a job of another version, no memory)
                    if self._failure is None:
                        log(logging.ERROR, "the folder of the imports cannot be used", error)
                    self._failure = error
                self._look.wait(LOOK_EVERY_S)
        finally:
            if held is not None:  # another process can go on
                os.close(held)

    def _do_queued(self) -> None:
        """Tidy the folder once in a while, then do the imports that are queued."""
        if self._clock() - self._tidied_at > TIDY_EVERY:
            self._folder.tidy(lambda job: self._is_old(job) or self._is_left_over(job))
            self._end_without_archive()
            self._tidied_at = self._clock()
        while (job := self._next()) is not None:
            self._failure = None
            self._do(job)

    def _is_old(self, job: ImportJob) -> bool:
        kept = timedelta(days=self._services.settings.import_report_days)
        return job.finished_at is not None and self._clock() - job.finished_at > kept

    def _is_left_over(self, job: ImportJob) -> bool:
        """Whether its collection was deleted, by a process that was killed before it could forget
        the job; a collection that was created later has only the name in common."""
        if job.finished_at is None:
            return False
        try:
            return (
                self._services.gallery.store.collections.get(job.collection).created_at
                > job.created_at
            )
        except CollectionNotFound:
            return True
        except LikenessError:  # the database does not answer: checked again later
            return False

    def _end_without_archive(self) -> None:
        """End the jobs whose archive was removed at their end, which was not written: the
        disk was full, and then the process was killed."""
        with self._folder.exclusive():
            for job in self._folder.all():
                if job.state not in UNDER_WAY or job.import_id in self._unsaved:
                    continue
                if not self._folder.archive(job).exists():
                    self.end(
                        job, JobState.FAILED,
                        "Its archive is gone, and how the import had ended could not be written: "
                        "the disk was full, or the service ended. What it enrolled is kept.",
                    )  # fmt: skip

    def _next(self) -> ImportJob | None:
        """The job that waits for longest, running from now on. As only one process does them, one
        that is running already was left by another, or is tried again here. None during its pause:
        those behind it keep their order."""
        if self._stopping.is_set():
            return None
        with self._folder.exclusive():
            for job in list(self._unsaved.values()):
                self._folder.save(job)
                del self._unsaved[job.import_id]
            found = [self._folder.find(id_of(path)) for path in self._folder.archives()]
            waiting = [job for job in found if job is not None and job.state in UNDER_WAY]
            for job in sorted(waiting, key=lambda job: job.created_at):
                if job.cancelling:
                    self.end(job, JobState.CANCELLED)
                    continue
                if self._retries.waits(job.import_id):
                    return None
                update = {
                    "state": JobState.RUNNING,
                    "started_at": self._clock(),
                    "counts": {},
                    # They count the ends of processes that left the job, not its errors.
                    "attempts": 1 if self._retries.is_of(job.import_id) else job.attempts + 1,
                    "detail": None,
                }
                running = job.model_copy(update=update)
                self._folder.save(running)
                return running
        return None

    def _do(self, job: ImportJob) -> None:
        counts = self._counts[job.import_id] = Counts()
        try:
            state, detail = self._outcome(job, counts)
            with self._folder.exclusive():
                now = self._folder.find(job.import_id)
                if now is None:
                    self._folder.forget(job)
                elif state is not None:
                    self.end(now.model_copy(update={"counts": counts.members()}), state, detail)
                else:  # the service did not die, so this attempt does not count
                    update = {"attempts": 0, "counts": counts.members(), "detail": detail}
                    self._folder.save(now.model_copy(update=update))
        finally:
            self._counts.clear()

    def _outcome(self, job: ImportJob, counts: Counts) -> tuple[JobState | None, str | None]:
        """Do the import; returns how it ended and why, or None if it goes on later: the service
        stops, or an error is temporary."""
        if job.attempts > MOST_ATTEMPTS:
            return JobState.FAILED, (
                f"The service ended {MOST_ATTEMPTS} times while it did this import, before it "
                "enrolled anybody: something in the archive may cause that. Send it in parts to "
                "find out what."
            )
        try:
            self._run(job, counts)
        except ImportEnded:
            return None if self._stopping.is_set() else JobState.CANCELLED, None
        except ImportStopped as reason:
            return JobState.STOPPED, reason.detail
        except Exception as error:  # noqa: BLE001 (the next job must still run)
            return self._after(error, job, counts)
        return JobState.DONE, None

    def _after(
        self, error: Exception, job: ImportJob, counts: Counts
    ) -> tuple[JobState | None, str]:
        """What an error means for the import."""
        if is_temporary(error):
            cause = described(error)
            pause = self._retries.after_attempt(job.import_id, counts.total)
            if pause is None:
                return JobState.FAILED, f"{cause} The import was tried {MOST_TRIES} times."
            log(logging.WARNING, "an import is tried again", error, import_id=job.import_id,
                pause_s=pause)  # fmt: skip
            return None, f"The import is tried again in {pause:.0f} s, by itself: {cause}"
        if isinstance(error, LikenessError):
            return JobState.FAILED, error.detail
        log(logging.ERROR, "an import failed", error, import_id=job.import_id)
        if isinstance(error, OSError):
            return JobState.FAILED, (
                f"The service cannot use a file in its data folder: {error.strerror}. Its log has "
                f"the file under import_id {job.import_id}."
            )
        return JobState.FAILED, (
            f"The service failed with an unexpected error ({type(error).__name__}); see its "
            f"log under import_id {job.import_id}. Rows enrolled before are kept."
        )

    def _run(self, job: ImportJob, counts: Counts) -> None:
        with acting_as(f"import:{job.import_id}"):
            self._enroll(job, counts)

    def _enroll(self, job: ImportJob, counts: Counts) -> None:
        services = self._services
        record = self._collection_of(job)
        given = SourceOptions(
            record.embedding_space,
            services.settings.max_image_bytes,
            pattern=job.options.pattern,
            person_from=job.options.person_from,
            names_encoding=job.options.names_encoding,
            uploaded=True,
        )
        # Half of the cores unless set: requests need the others.
        workers = services.settings.import_workers or max(1, services.scheduler.workers // 2)
        progress = partial(self._share_progress, job, counts)
        stop = StopCheck(self._stopping, progress, LOOK_EVERY_S)
        memory = services.settings.import_reader_bytes
        archive = self._folder.archive(job)
        with (
            report_writer(self._folder.report(job), MOST_WITHOUT) as write,
            reading(archive, given, memory, stop.check) as reader,
        ):

            def on_outcome(outcome: RowOutcome) -> None:
                counts(outcome)
                write(outcome)
                stop.rest()

            self._share_progress(job, counts, total=reader.total())
            running = LocalImport(services, record, job.options, workers, job.import_id)
            running.run(stop.between(reader.rows()), on_outcome)

    def _collection_of(self, job: ImportJob) -> CollectionRecord:
        """The collection of a job. Raises ImportEnded and forgets the job if it was deleted: one
        that was created later has only the name in common."""
        with suppress(CollectionNotFound):
            record = self._services.gallery.require(job.collection)
            if record.created_at <= job.created_at:
                return record
        with self._folder.exclusive():
            self.forget(job)
        raise ImportEnded

    def _share_progress(self, job: ImportJob, counts: Counts, **progress: object) -> None:
        """Write the progress of a job. Raises ImportEnded if the job was cancelled or forgotten."""
        if counts.of(RowResult.ENROLLED):
            progress["attempts"] = 0  # there is progress, however often it is interrupted
        with self._folder.exclusive():
            now = self._folder.find(job.import_id)
            if now is None or now.cancelling:
                raise ImportEnded
            with suppress(OSError):  # on a full disk it is written later
                members = {**progress, "counts": counts.members()}
                self._folder.save(now.model_copy(update=members))
