"""One file over HTTP into memory, accepted only with the SHA-256 that is expected."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from app.errors import PackError

# Bytes so far, and in all.
Progress = Callable[[int, int], None]
# Seconds: for each step of the connection, and for the whole file.
STEP_S, WHOLE_S = 30.0, 900.0


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file that others publish: where it is, its size in bytes and its SHA-256."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def fetch(file: PublishedFile, progress: Progress, *, mirror: str | None = None) -> bytes:
    """The content of a file; nothing is written to disk. `mirror` is the address of a folder that
    has it, too. Raises PackError with what to do."""
    url = file.url if mirror is None else f"{mirror.rstrip('/')}/{file.name}"
    try:
        content = _received(url, file.size, progress)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise PackError(
            f"{url} could not be fetched: {reason}. Nothing was kept. {_without_network(file)}"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise PackError(
            f"{url} is not the published file: its SHA-256 is {found}, expected {file.sha256}. "
            "Nothing was kept. Fetch it from a source that you trust (--url)."
        )
    return content


def _received(url: str, size: int, progress: Progress) -> bytes:
    deadline = time.monotonic() + WHOLE_S
    content = bytearray()
    # As it is sent: what is compressed might unpack to anything.
    headers = {"Accept-Encoding": "identity"}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=STEP_S) as answer:
        if answer.status_code != httpx.codes.OK:
            raise httpx.HTTPError(
                f"the server answered {answer.status_code} {answer.reason_phrase}"
            )
        for piece in answer.iter_raw():
            content += piece
            if len(content) > size:
                raise PackError(
                    f"{url} is not the published file: it has more than {size:,} bytes. Nothing "
                    "was kept."
                )
            if time.monotonic() > deadline:
                raise PackError(
                    f"{url} sent {len(content):,} of {size:,} bytes in {WHOLE_S:.0f} s. Nothing "
                    "was kept. Try again with a faster connection."
                )
            progress(len(content), size)
    return bytes(content)


def _without_network(file: PublishedFile) -> str:
    return (
        f"Without a network: fetch {file.url} on another machine, copy it here, and call likeness "
        f"models install {file.name}."
    )
