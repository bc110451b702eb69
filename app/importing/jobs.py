"""The imports of a service, as its clients see them: created, listed, cancelled, reported.

Every process over the same data folder accepts imports and answers for all of them. One of them,
which holds the folder's lock, does them (`ImportRunner`); if that one dies, another continues.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from app.errors import ImportNotFound, Overloaded
from app.importing.job_folder import (
    UNDER_WAY,
    ImportJob,
    JobFolder,
    JobState,
    Upload,
    id_of,
    unwritable,
)
from app.importing.options import UploadOptions
from app.importing.reports import ReportEraser, rows_about
from app.importing.runner import ImportRunner
from app.services import Services
from app.store.records import Erasure
from app.telemetry.logs import log

# Archives on disk: being received, waiting for their turn, or being imported.
MOST_WAITING = 32
RETRY_AFTER_S = 30  # a guess: the imports ahead take seconds to hours


class ImportJobs:
    """The imports of a data folder, as one process over it sees and does them."""

    def __init__(
        self,
        services: Services,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = JobFolder(services.settings.data_dir / "imports")
        self.eraser = ReportEraser(self._folder, services.gallery.has_person, clock)
        self._audit = services.gallery.store.audit
        self._clock = clock
        self._runner = ImportRunner(services, self._folder, clock)

    def start(self) -> None:
        """Do what is queued, also what an earlier run of the service left."""
        self._runner.start()

    def stop(self) -> None:
        """End; what is under way is continued after the next start."""
        self._runner.stop()

    def check(self) -> None:
        """Raise the error that keeps this process from doing imports, if it is the one that does
        them."""
        self._runner.check()

    def new_upload(self, suffix: str) -> Upload:
        """A place for an archive that is received; its name is the import's id. Raises Overloaded
        and StoreFull."""
        if len(self._folder.archives()) >= MOST_WAITING:
            raise Overloaded(
                f"{MOST_WAITING} imports are being received, waiting or running; send this one "
                "later.",
                {"retry_after": RETRY_AFTER_S},
            )
        return self._folder.new_upload(suffix)

    def create(self, collection: str, upload: Upload, options: UploadOptions) -> ImportJob:
        """Queue the import of an archive that was received. Raises StoreFull, and what the
        database raises; then closing the upload, which must wait for this, removes the archive."""
        import_id = id_of(upload.path)
        job = ImportJob(
            import_id=import_id,
            collection=collection,
            state=JobState.QUEUED,
            created_at=self._clock(),
            archive=upload.path.name,
            options=options,
        )
        self._audit.record("import.created", collection, import_id=import_id)
        try:
            with self._folder.exclusive():
                self._folder.save(job)
                upload.taken = True
        except OSError as error:
            raise unwritable("The import", error) from error
        self._runner.wake()
        return job

    def get(self, collection: str, import_id: str) -> ImportJob:
        """One job. Raises ImportNotFound."""
        job = self._runner.find(import_id)
        if job is None or job.collection != collection:
            raise ImportNotFound(f"The collection '{collection}' has no import '{import_id}'.")
        return self._runner.counted(job)

    def of(self, collection: str) -> list[ImportJob]:
        """A collection's jobs, the newest first."""
        mine = [
            self._runner.counted(job) for job in self._folder.all() if job.collection == collection
        ]
        return sorted(mine, key=lambda job: job.created_at, reverse=True)

    def report(self, collection: str, import_id: str) -> Path:
        """Where the outcome of each row is written, as JSON Lines. Raises ImportNotFound."""
        path = self._folder.report(self.get(collection, import_id))
        if not path.is_file():
            raise _no_report(import_id)
        return path

    def open_report(self, collection: str, import_id: str) -> BinaryIO:
        """The report, open to be read: it stays so if the import is deleted. Raises
        ImportNotFound."""
        try:
            return self.report(collection, import_id).open("rb")
        except FileNotFoundError:  # deleted just now
            raise _no_report(import_id) from None

    def rows_about(
        self, collection: str, person_id: str, check: Callable[[], None]
    ) -> tuple[list[dict[str, Any]], bool]:
        """What reports have about a person, as `reports.rows_about` says. Raises OSError."""
        return rows_about(self._folder, collection, person_id, check)

    def cancel(self, collection: str, import_id: str) -> ImportJob:
        """End a job that is queued or running, or forget one that has ended, with its report; what
        it enrolled stays. One that is running ends within moments. Raises ImportNotFound and
        StoreFull."""
        found = self.get(collection, import_id)
        under_way = found.state in UNDER_WAY
        if not (under_way and found.cancelling):
            action = "import.cancelled" if under_way else "import.removed"
            self._audit.record(action, collection, import_id=import_id)
        try:
            with self._folder.exclusive():
                job = self.get(collection, import_id)
                if job.state is JobState.QUEUED:
                    self._runner.end(job, JobState.CANCELLED)
                elif job.state is JobState.RUNNING:
                    self._folder.save(job.model_copy(update={"cancelling": True}))
                else:
                    self._runner.forget(job)
                    return job
                return self.get(collection, import_id)
        except OSError as error:
            raise unwritable("The import", error) from error

    def forget_collection(self, collection: str) -> Erasure:
        """Remove what belongs to a collection that was deleted: reports name people. If that fails
        it is pending: the process that does imports removes it later."""
        try:
            if self._folder.path.exists():
                with self._folder.exclusive():
                    for job in self.of(collection):
                        self._runner.forget(job)
        except OSError as error:
            log(logging.WARNING, "imports of a deleted collection are left for now", error,
                collection=collection)  # fmt: skip
            return Erasure.PENDING
        return Erasure.DONE


def _no_report(import_id: str) -> ImportNotFound:
    return ImportNotFound(f"The import '{import_id}' has not begun: it has no report yet.")
