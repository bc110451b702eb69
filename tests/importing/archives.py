"""Archives that several tests import."""

import zipfile
from pathlib import Path

from app.importing.job_folder import ImportJob
from app.importing.jobs import ImportJobs
from app.importing.options import UploadOptions


def two_people(folder: Path, photos: Path) -> Path:
    """A zip of two people, three photos, one of them broken."""
    path = folder / "people.zip"
    with zipfile.ZipFile(path, "w") as content:
        content.write(photos / "obama.jpg", "obama/1.jpg")
        content.write(photos / "obama2.jpg", "obama/2.jpg")
        content.writestr("biden/broken.jpg", b"\xff\xd8\xff broken")
    return path


def queue(jobs: ImportJobs, archive: Path, collection: str = "default") -> ImportJob:
    """An import that waits for its turn."""
    upload = jobs.new_upload(archive.suffix)
    upload.write(archive.read_bytes())
    upload.sync()
    job = jobs.create(collection, upload, UploadOptions())
    upload.close()
    return job
