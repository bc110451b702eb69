"""Files that are written completely or not at all and private to their owner, and locks between
the processes of one machine."""

import errno
import fcntl
import hashlib
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from shlex import quote
from types import TracebackType

from app.locks import Lock, new_lock

# How often a lock is tried that another process has; a write to a disk takes longer.
TRY_EVERY_S = 0.0005
UNFINISHED = b".new"
MAX_NAME_BYTES = 255  # of a file, with most file systems
# Of an OSError where descriptors or memory have run out: the same may succeed later.
SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def write_whole(
    path: Path,
    pieces: Iterable[bytes | memoryview],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Replace a file by what the pieces hold; its owner alone may read it.

    When this returns it is on disk, also after a power cut; until then the old file is. `check`
    reads the new one before it replaces the old one, which stays if it raises. Raises OSError, also
    if it would replace a device, a pipe or a folder.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it is not a regular file", str(path))
    temporary = unfinished(path)
    try:
        with open(temporary, "wb", opener=_private_anew) as file:
            for piece in pieces:
                file.write(piece)
        if check is not None:
            sync(temporary)
            check(temporary)
        publish(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(written: Path, path: Path) -> None:
    """Give a file that is written completely its name. When this returns, both are on disk, also
    after a power cut. Raises OSError."""
    sync(written)
    written.rename(path)
    with suppress(PermissionError):  # a folder that may be written, but not read
        sync(path.parent)


def unfinished(path: Path) -> Path:
    """The file that becomes `path` when it is written completely."""
    name = os.fsencode(path.name)
    if len(name) + len(UNFINISHED) > MAX_NAME_BYTES:
        name = hashlib.sha256(name).hexdigest().encode()
    return path.with_name(os.fsdecode(name + UNFINISHED))


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to disk. Raises OSError."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        # Some file systems on a network cannot do this with folders; nothing more can be done then.
        if not (path.is_dir() and error.errno in (errno.EBADF, errno.EINVAL)):
            raise
    finally:
        os.close(opened)


def _private(path: str, flags: int) -> int:
    """An opener of files that their owner alone may read."""
    return os.open(path, flags, 0o600)


def _private_anew(path: str, flags: int) -> int:
    """An opener of files of which nobody else has prepared one: neither a link to another file, nor
    one that others may read."""
    file = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(file, 0o600)
    except OSError:
        os.close(file)
        raise
    return file


def private_folder(path: Path) -> None:
    """Make a folder, and missing parents, that only their owner can use, independent of the umask.
    An existing folder is not changed. Raises OSError."""
    if path.is_dir():
        return
    private_folder(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(0o700)  # a umask may have taken rights from the owner too


def private_file(path: Path) -> None:
    """Make an empty file that only its owner can use, independent of the umask. An existing file
    is not changed. Raises OSError."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return
    try:
        os.fchmod(file, 0o600)
    finally:
        os.close(file)


def require_access(path: Path) -> None:
    """Raises OSError where this process may not read and write a file, or list, change and enter a
    folder."""
    needed = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
    if not os.access(path, needed):
        number = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(path))


def command_for_access(folder: Path, denied: Path) -> str | None:
    """The command by which root gives this process the right to use a folder and all that is in it,
    where it was denied at that path. None where a folder above cannot be entered: that one may be
    closed on purpose."""
    user, group = os.geteuid(), os.getegid()
    # What is behind a folder that cannot be entered cannot be looked at either.
    found = next(one for one in (denied, *denied.parents) if os.access(one, os.F_OK))
    if folder not in (found, *found.parents):
        if os.access(found, os.X_OK):
            return f"install -d -o {user} -g {group} {quote(str(folder))}"
        return None
    if found.stat().st_uid == user:
        return f"chmod -R u+rwX {quote(str(folder))}"
    return f"chown -R {user}:{group} {quote(str(folder))}"


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> list[Path]:
    """What is in a folder; nothing in one that is not there, or that another thread or process
    removes in this moment. Raises OSError where it cannot be read."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def own(path: Path) -> int | None:
    """A descriptor that holds the lock of that name until it is closed, or its process ends; None
    where somebody else holds it. Raises OSError where the file cannot be made."""
    file = _private(str(path), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    except OSError:
        os.close(file)
        raise
    return file


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait for the lock of that name, and hold it: against threads and other processes."""
    file = _private(str(path), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


class FairLock:
    """A lock that processes get in about the order in which they asked for it.

    A second file is locked by the process that is next, so a process that releases the lock cannot
    take it again before that one. For one thread at a time; released when its process ends.
    """

    def __init__(self, path: Path) -> None:
        """With two files beside `path`, which are made when it is first used."""
        self._paths = [path.with_name(f"{path.name}-{name}") for name in ("writer", "next")]
        self._files: list[int] = []

    def acquire(self, seconds: float) -> bool:
        """Wait for it; False if that takes longer than `seconds`, or its files cannot be made."""
        deadline = time.monotonic() + seconds
        try:
            lock, place = self._opened()
            if not _acquired(place, deadline):
                return False
            try:
                return _acquired(lock, deadline)
            finally:
                fcntl.flock(place, fcntl.LOCK_UN)
        except OSError:
            return False

    def release(self) -> None:
        """Give it to the process that waits next."""
        fcntl.flock(self._files[0], fcntl.LOCK_UN)

    def _opened(self) -> list[int]:
        if not self._files:
            with ExitStack() as stack:
                files = []
                for path in self._paths:
                    files.append(_private(str(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW))
                    stack.callback(os.close, files[-1])
                weakref.finalize(self, stack.pop_all().close)
                self._files = files
        return self._files


def _acquired(file: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(TRY_EVERY_S)
        else:
            return True


LOCK = "lock"


class Ownership:
    """Held by one process at a time, until it releases it or ends."""

    def __init__(self, folder: Path, acquired: Callable[[], None] = lambda: None) -> None:
        """`acquired` is called when this process becomes the owner, before `own` returns."""
        self._folder = folder
        self._acquired = acquired
        self._descriptor: int | None = None
        self._lock = new_lock("snapshots.owner")

    @property
    def held(self) -> bool:
        """Whether this process is the owner."""
        return self._descriptor is not None

    def own(self) -> bool:
        """Try to become the owner; returns whether this process is the owner."""
        if self.held:
            return True
        with self._lock:
            if self._descriptor is None and (descriptor := self._try()) is not None:
                try:
                    self._acquired()
                except OSError:
                    os.close(descriptor)
                    return False  # as in `_try`
                except BaseException:
                    os.close(descriptor)
                    raise
                self._descriptor = descriptor
            return self.held

    def _try(self) -> int | None:
        try:
            private_folder(self._folder)
            return own(self._folder / LOCK)
        except OSError:
            return None  # a folder that cannot be written keeps nothing

    def release(self) -> None:
        """Stop being the owner."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


class OneProcessLock:
    """`app.locks.Lock`, never waited for: a caller that finds it taken does something else.
    Released when its process ends."""

    def __init__(self, lock: Lock, path: Path) -> None:
        """`path`: the file that is locked, in a folder that all processes share. Where it cannot
        be created, only other threads of this process are kept out."""
        self._lock = lock
        self._path = path
        self._file: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; `blocking` is for the threads of this process."""
        if not self._lock.acquire(blocking, timeout):
            return False
        try:
            self._file = own(self._path)
        except OSError:
            return True
        if self._file is None:
            self._lock.release()
            return False
        return True

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._lock.release()

    def locked(self) -> bool:
        """Whether a thread of this process has it."""
        return self._lock.locked()

    def __enter__(self) -> bool:
        if not self.acquire():
            raise BlockingIOError("another process has the lock")
        return True

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.release()
