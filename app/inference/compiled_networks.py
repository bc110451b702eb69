"""Networks that an engine has compiled for this CPU, kept in a folder for the next start."""

import errno
import hashlib
import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.disk import files_in, own, private_folder, write_whole
from app.telemetry.logs import log

MOST_FILES, MOST_BYTES = 64, 512 * 1024 * 1024
SUFFIX = ".compiled"
UNFINISHED = ".new"  # what `write_whole` has not renamed yet
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class CompiledNetworks:
    """A bounded folder of compiled networks, which several processes may use at a time.

    Each file begins with the SHA-256 of its key and the rest: an engine is never given a damaged
    one, or that of another network. A folder that cannot be read or written costs the compilation
    and is logged; nothing is raised.
    """

    folder: Path
    most_files: int = MOST_FILES
    most_bytes: int = MOST_BYTES

    def load(self, key: str) -> bytes | None:
        """What was kept under `key`; None if there is nothing, or it is damaged."""
        path = self._path(key)
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > self.most_bytes:
                # Not written by `keep`: reading it could wait for ever, or fill the memory.
                raise OSError(errno.EINVAL, "it is not a file that can be used", str(path))
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None
        network = content[_DIGEST:]
        if _digest(key, network) != content[:_DIGEST]:
            log(logging.WARNING, "a compiled network is damaged; compiling again", file=str(path))
            return None
        with suppress(OSError):
            os.utime(path)  # the least recently used are removed first
        return network

    def keep(self, key: str, network: bytes) -> None:
        """Keep a compiled network, and remove the least recently used beyond the bounds. Does
        nothing while another process writes here."""
        try:
            private_folder(self.folder)
            lock = own(self.folder / "lock")
            if lock is None:
                return
            try:
                write_whole(self._path(key), [_digest(key, network), network])
                self._remove_oldest()
            finally:
                os.close(lock)
        except OSError as error:
            self._complain(error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _remove_oldest(self) -> None:
        files = files_in(self.folder)
        for path in files:
            if path.suffix == UNFINISHED:  # only the holder of the lock writes, and it has ended
                path.unlink(missing_ok=True)
        kept = [(path.stat(), path) for path in files if path.suffix == SUFFIX]
        kept.sort(key=lambda one: one[0].st_mtime_ns, reverse=True)
        total = 0
        for number, (found, path) in enumerate(kept):
            total += found.st_size
            if number >= self.most_files or total > self.most_bytes:
                path.unlink(missing_ok=True)

    def _complain(self, error: OSError) -> None:
        log(
            logging.WARNING,
            "compiled networks cannot be read or written; each start compiles them again",
            folder=str(self.folder),
            reason=str(error),
        )


def _digest(key: str, network: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + network).digest()
