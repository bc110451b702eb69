"""Published packs over the network, by the download code of InsightFace's own package."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, IncompleteRead
from pathlib import Path

from insightface.gui.core.model_downloads import ModelAsset, download_model_asset
from insightface.utils.storage import model_zoo_download_url

from app.disk import own
from app.errors import PackError
from app.lab.packing.archive import opened
from app.lab.packing.published import PublishedPack
from app.lab.packing.writing import packs_folder, unwritable, workspace

# Bytes so far, and in all.
Progress = Callable[[int, int], None]
# The archive, what it unpacks to, and the pack made of that.
COPIES_ON_DISK = 3
# Of the published size, both as it is sent and unpacked: networks hardly compress, and a mirror may
# have packed them otherwise.
MOST = 1.5
FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


@contextmanager
def fetched(
    pack: PublishedPack, installed: Path, progress: Progress, *, base_url: str | None = None
) -> Iterator[Path]:
    """The folder of a published pack's two networks, gone after the `with`.

    What was fetched of an archive before the connection ended stays in `installed` and is continued
    by the next call. `base_url` is a mirror of InsightFace's model zoo. Raises PackError with what
    to do.
    """
    cache = installed / ".download"
    _check_room(pack, installed)
    url = f"{base_url.rstrip('/')}/{pack.archive}" if base_url else model_zoo_download_url(
        pack.archive
    )  # fmt: skip
    with _only_download(installed), workspace(installed) as folder:
        archive = _Download(pack, url, cache, progress).run(folder)
        try:
            _unpack(pack, url, archive, folder)
            yield folder
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


class _Download:
    """One archive from `url`; what is there of it so far is in a folder `cache`."""

    def __init__(self, pack: PublishedPack, url: str, cache: Path, progress: Progress) -> None:
        self._pack = pack
        self._url = url
        # InsightFace's function unpacks what is called *.zip, whatever the archive says; not this.
        self._asset = ModelAsset(f"{pack.archive}.archive", url)
        self._cache = cache
        self._whole = cache / "models" / self._asset.name
        self._part = self._whole.with_name(f"{self._asset.name}.part")
        self._progress = progress
        self._done = self._total = 0

    def run(self, folder: Path) -> Path:
        """Fetch it into a folder; its path. Raises PackError."""
        try:
            archive: Path = download_model_asset(
                self._asset, str(folder), self._cache, self._report
            )
        except IncompleteRead as error:
            raise self._ended() from error
        except (RuntimeError, OSError, ValueError, HTTPException) as error:
            raise self._failure(error) from error
        if self._done < self._total:
            self._whole.replace(self._part)
            raise self._ended()
        self._whole.unlink()  # the archive is a copy of it
        return archive

    def _report(self, done: int, total: int, what: str) -> None:
        """Called for each piece that was written."""
        if not what.startswith("Downloading"):
            return
        self._done, self._total = done, total
        if max(done, total) > (most := _most_bytes(self._pack)):
            self._part.unlink(missing_ok=True)
            raise PackError(
                f"{self._url} is another file than {self._pack.archive}: it has more than the "
                f"{most:,} bytes that are accepted. What was fetched, {self._part}, was removed. "
                "Check the address (--url), and whether a proxy answered instead."
            )
        self._progress(done, total)

    def _ended(self) -> PackError:
        so_far = f"{self._done:,}"
        if self._total > self._done:
            so_far += f" of {self._total:,}"
        return PackError(
            f"The connection to {self._url} ended after {so_far} bytes, which are in {self._part}. "
            "Call the command again; it resumes the download."
        )

    def _failure(self, error: Exception) -> PackError:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        said = f"{self._pack.archive} could not be fetched: {reason}."
        # The downloader keeps of the system's error only the text.
        if any(text in reason for text in FULL):
            for path in (self._part, self._whole):
                path.unlink(missing_ok=True)
            return PackError(
                f"{said} What was fetched, {self._part}, was removed. Free some space, or set "
                "LIKENESS_MODELS_DIR to another disk."
            )
        if self._part.exists():
            said += f" What was fetched is in {self._part}; the next call resumes the download."
        return PackError(
            f"{said} Without a network: fetch {self._url} on another machine, copy it here, and "
            f"call likeness models install {self._pack.archive}."
        )


def _most_bytes(pack: PublishedPack) -> int:
    return int(MOST * pack.archive_bytes)


def _unpack(pack: PublishedPack, url: str, archive: Path, folder: Path) -> None:
    """The two networks that are used, under their names. Raises PackError."""
    advice = "Check the address (--url), and whether a proxy answered instead."
    with opened(archive, name=url, maximum=_most_bytes(pack), advice=advice) as content:
        for network in (pack.detector, pack.recogniser):
            if network.file not in content.files:
                raise PackError(
                    f"{pack.archive} does not contain {network.file}; it is another archive."
                )
            content.unpack(network.file, folder / network.file)
