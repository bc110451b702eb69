"""Imports on disk: their states, archives and reports, for every process of the machine."""

import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from enum import StrEnum
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict

from app.disk import exclusive, own, private_folder, write_whole
from app.errors import StoreFull
from app.importing.options import UploadOptions
from app.telemetry.logs import log

STATE, REPORT, UNFINISHED = ".json", ".report.jsonl", ".new"
IMPORT_ID = re.compile(r"[0-9a-f]{32}")


class JobState(StrEnum):
    """`stopped`: at a rejected row, because its options say so."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    CANCELLED = "cancelled"


UNDER_WAY = (JobState.QUEUED, JobState.RUNNING)


class ImportJob(BaseModel):
    """One import: its options, its progress, and why it ended early or is tried again. `total` is
    the number of rows, if it is known in advance. `started_at`: when it was last begun (again after
    a restart, by another process, or after a temporary error); `counts` are those since then.
    `attempts` is the number of starts since somebody was enrolled; `cancelling` means that it is
    about to end."""

    model_config = ConfigDict(frozen=True)

    import_id: str
    collection: str
    state: JobState
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None
    archive: str
    options: UploadOptions
    total: int | None = None
    counts: dict[str, object] = {}
    attempts: int = 0
    cancelling: bool = False
    detail: str | None = None


class Upload:
    """An archive on its way to disk, locked meanwhile; gone when it is closed without a job."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.taken = False
        self._file = os.fdopen(descriptor, "wb")

    def write(self, piece: bytes) -> None:
        """One more piece. Raises OSError."""
        self._file.write(piece)

    def sync(self) -> None:
        """All pieces are on disk when this returns. Raises OSError."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it, and remove it unless a job was made of it."""
        if not self.taken:
            self.path.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk was reported before
            self._file.close()


class JobFolder:
    """A folder with one file for each job, its archive until it has ended, and its report."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold it between looking at a job and changing it. Raises OSError."""
        return exclusive(self.path / "lock")

    def become_runner(self) -> int | None:
        """A descriptor of the locked file `worker`, which the one process that does the jobs holds;
        None for the others. Raises OSError."""
        return own(self.path / "worker") if self.path.exists() else None

    def new_upload(self, suffix: str) -> Upload:
        """A place for an archive, named by a new job's id. Raises StoreFull."""
        try:
            private_folder(self.path)
            with self.exclusive():  # it is locked before anybody can take it for a leftover
                path = self.path / f"{uuid.uuid4().hex}{suffix}"
                held = own(path)
        except OSError as error:
            raise unwritable("The import", error) from error
        assert held is not None, "the name is new"
        return Upload(path, held)

    def archives(self) -> list[Path]:
        """The archives of jobs that are queued or running, and those that are being received."""
        others = (STATE, REPORT, UNFINISHED)
        return [path for path in self.path.glob("*.*") if not path.name.endswith(others)]

    def archive(self, job: ImportJob) -> Path:
        """What is imported."""
        return self.path / job.archive

    def report(self, job: ImportJob) -> Path:
        """Where the outcome of each row is written, as JSON Lines."""
        return self.path / f"{job.import_id}{REPORT}"

    def find(self, import_id: str) -> ImportJob | None:
        """One job."""
        if IMPORT_ID.fullmatch(import_id) is None:  # a client's text must not name other files
            return None
        try:
            return ImportJob.model_validate_json(self._state(import_id).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            log(logging.WARNING, "a file is not an import job", error,
                file=str(self._state(import_id)))  # fmt: skip
            return None

    def all(self) -> Iterator[ImportJob]:
        """Every job."""
        for path in list(self.path.glob(f"*{STATE}")):
            job = self.find(id_of(path))
            if job is not None:
                yield job

    def save(self, job: ImportJob) -> None:
        """On disk when this returns. Raises OSError."""
        write_whole(self._state(job.import_id), [job.model_dump_json().encode()])

    def end(self, job: ImportJob) -> None:
        """Save a job that has ended, and remove its archive. On a full disk the archive is removed
        first, which makes room. Raises OSError if the job cannot be saved; its archive is gone."""
        try:
            self.save(job)
        except OSError:
            self.archive(job).unlink(missing_ok=True)
            self.save(job)
        self.archive(job).unlink(missing_ok=True)

    def forget(self, job: ImportJob) -> None:
        """Remove all files of a job, its state first: the process that runs the job learns from
        this that it is no longer wanted."""
        for path in (self._state(job.import_id), self.report(job), self.archive(job)):
            path.unlink(missing_ok=True)

    def tidy(self, is_old: Callable[[ImportJob], bool]) -> None:
        """Forget what is old, and remove what was being received or written when a process died."""
        with self.exclusive():
            for job in self.all():
                if is_old(job):
                    self.forget(job)
                elif job.state not in UNDER_WAY:  # the process died before it removed the archive
                    self.archive(job).unlink(missing_ok=True)
            for path in [*self.archives(), *self.path.glob(f"*{REPORT}")]:
                # A state that cannot be read is a state: another version's, perhaps.
                held = None if self._state(id_of(path)).exists() else own(path)
                if held is not None:  # no process is sending it
                    path.unlink()
                    os.close(held)
            for path in self.path.glob(f"*{UNFINISHED}"):
                path.unlink()

    def _state(self, import_id: str) -> Path:
        return self.path / f"{import_id}{STATE}"


def id_of(path: Path) -> str:
    """The id of the import that a file of the folder belongs to."""
    return path.name.partition(".")[0]


def unwritable(what: str, error: OSError) -> StoreFull:
    """The error for a disk on which something of an import cannot be written."""
    return StoreFull(f"{what} cannot be written to disk: {error.strerror}. Nothing was changed.")
