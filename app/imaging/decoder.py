"""The photo decoder: limits the memory of all photos, and decodes suspicious ones in a process."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import app
from app.errors import ImageError, Overloaded, UnreadableImage
from app.imaging.decoding import decode_here
from app.imaging.limits import BYTES_PER_PIXEL, ImageLimits, inspect, is_suspicious, memory_of
from app.imaging.wire import DecoderChannel, DecodeRequest
from app.locks import new_condition, new_lock
from app.types import DecodedImage, Image

RETRY_AFTER_S = 1
# Seconds after which an idle process is ended; starting one takes half a second.
IDLE_SECONDS = 5.0
# Address space of a decoder process without a photo: Python, NumPy, OpenCV and the codecs.
_PROCESS_BYTES = 512 * 1024 * 1024


class PhotoDecoder:
    """Decodes photos for several threads. Safe to call from all of them.

    All photos being decoded may take `limits.decode_bytes` together, estimated from their headers;
    others wait in the order of their calls. Suspicious photos, and every HEIC and AVIF, are decoded
    in a separate process, which can be killed without harm.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits
        self._memory = MemoryBudget(limits.decode_bytes)
        self._idle: list[_Process] = []
        self._lock = new_lock("decoder.processes")
        self._timer: threading.Timer | None = None
        self._finalizer = weakref.finalize(self, _end_all, self._idle)

    def decode(self, data: bytes, enough: int | None = None) -> DecodedImage:
        """Decode one photo to a contiguous uint8 array (height, width, 3), BGR, upright.

        Where `enough` pixels on the longer side do, a JPEG may come reduced to a half, a quarter
        or an eighth, never to less than that.

        Raises EmptyImage, UnsupportedImage, ImageTooLarge, UnreadableImage, or Overloaded when
        there was no memory for it in time.
        """
        header = inspect(data, self.limits)
        suspicious = is_suspicious(data, header)
        memory = memory_of(header, suspicious=suspicious)
        with self._memory.hold(memory, self.limits.decode_seconds):
            if suspicious:
                return self._decode_apart(data, enough)
            try:
                return decode_here(header, data, self.limits, enough)
            except MemoryError as error:
                raise Overloaded(
                    "The memory did not suffice to decode the image; try again in a moment, or "
                    "send a smaller photo.",
                    {"retry_after": RETRY_AFTER_S},
                ) from error

    def close(self) -> None:
        """End the processes that wait for photos."""
        with self._lock:
            self._finalizer()
            if self._timer is not None:
                self._timer.cancel()

    def _decode_apart(self, data: bytes, enough: int | None) -> DecodedImage:
        request = DecodeRequest(data, self.limits, enough)
        process = self._take()
        try:
            photo = process.decode(request)
        except ImageError:
            self._give_back(process)
            raise
        except TimeoutError as error:
            process.end()
            raise UnreadableImage(
                f"The image could not be decoded within {self.limits.decode_seconds:g} s; save it "
                "again, as a baseline JPEG."
            ) from error
        except EOFError as error:
            process.end()
            raise UnreadableImage(
                "The image is damaged, or takes more memory than a photo of its size does; save it "
                "again, as a baseline JPEG."
            ) from error
        except BaseException:
            process.end()
            raise
        self._give_back(process)
        return photo

    def _take(self) -> "_Process":
        """A process that waits, or else a fresh one."""
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.runs:
                    return process
                process.end()
        try:
            return _Process(self.limits)
        except OSError as error:
            raise Overloaded(
                f"No process could be started to decode the image ({error.strerror}); try again in "
                "a moment.",
                {"retry_after": RETRY_AFTER_S},
            ) from error

    def _give_back(self, process: "_Process") -> None:
        process.idle_since = time.monotonic()
        with self._lock:
            if self._finalizer.alive:
                self._idle.append(process)
                self._end_idle_later()
                return
        process.end()

    def _end_idle_later(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(IDLE_SECONDS, self._end_idle)
            self._timer.name, self._timer.daemon = "decoder-timer", True
            self._timer.start()

    def _end_idle(self) -> None:
        """End the processes that nobody has needed for a while."""
        with self._lock:
            self._timer = None
            before = time.monotonic() - IDLE_SECONDS
            while self._idle and self._idle[0].idle_since <= before:
                self._idle.pop(0).end()
            if self._idle:
                self._end_idle_later()


class MemoryBudget:
    """Bytes that several threads may use together, given out in the order of their requests."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._waiting: deque[object] = deque()
        self._changed = new_condition("decoder.memory")

    @contextlib.contextmanager
    def hold(self, size: int, seconds: float) -> Iterator[None]:
        """Reserve `size` bytes; more than the whole budget only if nothing else is reserved.

        Raises Overloaded when they are not free within `seconds`.
        """
        size, turn = min(size, self._most), object()
        with self._changed:
            self._waiting.append(turn)
            try:
                free = self._changed.wait_for(
                    lambda: self._waiting[0] is turn and self._held + size <= self._most, seconds
                )
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
            if not free:
                raise Overloaded(
                    f"Other photos are using the {self._most:,} bytes of memory for decoding; try "
                    "again in a moment, or send smaller photos.",
                    {"retry_after": RETRY_AFTER_S},
                )
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


class _Process:
    """One decoder process."""

    def __init__(self, limits: ImageLimits) -> None:
        self.idle_since = 0.0
        ours, theirs = socket.socketpair()
        most = _PROCESS_BYTES + BYTES_PER_PIXEL * limits.max_pixels
        command = [sys.executable, "-P", "-m", "app.imaging.process", str(theirs.fileno())]
        self._connection = DecoderChannel(ours)
        with theirs, contextlib.ExitStack() as failed:
            failed.callback(self._connection.close)
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with numbers
                [*command, str(most)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                start_new_session=True,
            )
            failed.pop_all()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def decode(self, request: DecodeRequest) -> DecodedImage:
        """Raises ImageError, TimeoutError, and EOFError when the process has ended."""
        deadline = time.monotonic() + request.limits.decode_seconds
        self._connection.send_request(request, deadline)
        return self._connection.receive_photo(request.limits, deadline)

    def end(self) -> None:
        """End it now, whatever it does."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _environment() -> dict[str, str]:
    """Without the settings of the service, keys among them."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    # One arena: each more would map 64 MiB of the address space that is limited.
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return {**kept, **threads, "PYTHONPATH": str(Path(app.__file__).parents[1])}


def _end_all(processes: list[_Process]) -> None:
    while processes:
        processes.pop().end()


def decode_image(data: bytes, limits: ImageLimits) -> Image:
    """One photo alone, to a contiguous uint8 array (height, width, 3), BGR, upright.

    Orientation is applied; transparency is laid on white; 16-bit, palette, grey and CMYK become
    8-bit BGR; of an animation the first frame is taken. Raises what `PhotoDecoder.decode` does.
    """
    return decode_at_least(data, limits, None).pixels


def decode_at_least(data: bytes, limits: ImageLimits, enough: int | None) -> DecodedImage:
    """The same, reduced where `enough` allows it, as `PhotoDecoder.decode` does."""
    with contextlib.closing(PhotoDecoder(limits)) as decoder:
        return decoder.decode(data, enough)
