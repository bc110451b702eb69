"""Published packs over the network, by the download code of InsightFace's own package."""

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from insightface.gui.core.model_downloads import ModelAsset, download_model_asset
from insightface.utils.storage import model_zoo_download_url

from app.disk import own
from app.errors import PackError
from app.lab.packing.published import PublishedPack
from app.lab.packing.writing import packs_folder, unwritable, workspace

# Bytes so far, and in all.
Progress = Callable[[int, int], None]
# The archive, what it unpacks to, and the pack made of that.
COPIES_ON_DISK = 3


@contextmanager
def fetched(
    pack: PublishedPack, installed: Path, progress: Progress, *, base_url: str | None = None
) -> Iterator[Path]:
    """The folder of a published pack's unpacked files, gone after the `with`.

    What was fetched of an archive before it failed stays in `installed` and is continued by the
    next call. `base_url` is a mirror of InsightFace's model zoo. Raises PackError with what to do.
    """
    cache = installed / ".download"
    seen = [0, 0]

    def reported(done: int, total: int, what: str) -> None:
        if what.startswith("Downloading"):
            seen[:] = done, total
            progress(done, total)

    _check_room(pack, installed)
    url = f"{base_url.rstrip('/')}/{pack.archive}" if base_url else model_zoo_download_url(
        pack.archive
    )  # fmt: skip
    archive = cache / "models" / pack.archive
    with _only_download(installed), workspace(installed) as root:
        try:
            folder = download_model_asset(ModelAsset(pack.archive, url), str(root), cache, reported)
        except (RuntimeError, OSError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
            raise _failure(pack, url, archive, error, (seen[0], seen[1])) from error
        try:
            yield _innermost(Path(folder), pack)
        finally:
            shutil.rmtree(cache, ignore_errors=True)


@contextmanager
def _only_download(installed: Path) -> Iterator[None]:
    """Two downloads would remove each other's files."""
    with unwritable(installed):
        lock = own(installed / ".download-lock")
    if lock is None:
        raise PackError(
            f"Another command is fetching a pack into {installed}. Wait until it has ended, and "
            "call this one again."
        )
    try:
        yield
    finally:
        os.close(lock)


def _check_room(pack: PublishedPack, installed: Path) -> None:
    try:
        packs_folder(installed)
        free = shutil.disk_usage(installed).free
    except OSError as error:
        raise PackError(
            f"{installed} cannot be written ({error.strerror}). Set LIKENESS_MODELS_DIR to a "
            "folder that can."
        ) from error
    needed = COPIES_ON_DISK * pack.archive_bytes
    if free < needed:
        raise PackError(
            f"{pack.name} needs about {needed / 1e6:.0f} MB while it is installed, and {installed} "
            f"has {free / 1e6:.0f} MB left. Free some space, or set LIKENESS_MODELS_DIR to "
            "another disk."
        )


def _failure(
    pack: PublishedPack, url: str, archive: Path, error: Exception, seen: tuple[int, int]
) -> PackError:
    """The error to raise, after moving what was fetched to where the next call resumes."""
    done, total = seen
    if archive.exists() and done < total:
        archive.replace(archive.with_suffix(".zip.part"))
        return PackError(
            f"The connection to {url} ended after {done:,} of {total:,} bytes. Call the command "
            "again; it resumes the download."
        )
    if isinstance(error, zipfile.BadZipFile):
        archive.unlink(missing_ok=True)
        return PackError(f"What {url} answered is not a zip file ({error}). Is the address right?")
    return PackError(
        f"{pack.archive} could not be fetched: {str(error).rstrip('.')}. Without a network: fetch "
        f"{url} on another machine, copy it here, and call likeness models install {pack.archive}."
    )


def _innermost(folder: Path, pack: PublishedPack) -> Path:
    """Where the networks lie: some archives hold a folder of the pack's name."""
    found = next(folder.rglob(pack.recogniser.file), None)
    if found is None:
        raise PackError(
            f"{pack.archive} does not contain {pack.recogniser.file}; it is another archive."
        )
    return found.parent
