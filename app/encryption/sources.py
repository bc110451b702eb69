"""Where the operator's keys come from: the environment, a file, or a command."""

import logging
import os
import selectors
import shlex
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import IO

from app.encryption.keys import Key, parse_keys
from app.errors import EncryptionKeyError
from app.settings import Settings
from app.telemetry.logs import log

TEXT = "LIKENESS_ENCRYPTION_KEY"
FILE = "LIKENESS_ENCRYPTION_KEY_FILE"
COMMAND = "LIKENESS_ENCRYPTION_KEY_COMMAND"

COMMAND_SECONDS = 30.0
MAX_BYTES = 64 * 1024  # of key text: hundreds of keys, and no endless file or output


def read_keys(settings: Settings) -> tuple[Key, ...] | None:
    """The keys that the settings name, the active one first; None where they name none.

    Raises EncryptionKeyError where two sources are named, one cannot be read, or what it gives is
    no good. A source that is named but empty is an error too: nothing is stored in the clear by
    mistake.
    """
    text, file, command = (
        settings.encryption_key,
        settings.encryption_key_file,
        settings.encryption_key_command,
    )
    named = [n for n, s in ((TEXT, text), (FILE, file), (COMMAND, command)) if s is not None]
    if len(named) > 1:
        raise EncryptionKeyError(f"{' and '.join(named)} are set; only one of them may be.")
    if text is not None:
        return parse_keys(text.get_secret_value().encode(errors="replace"), TEXT)
    if file is not None:
        return parse_keys(read_key_file(file), FILE)
    if command is not None:
        return parse_keys(run_key_command(command.get_secret_value()), COMMAND)
    return None


def read_key_file(path: Path) -> bytes:
    """What a key file holds; a warning is logged where others than its owner can read it.

    Raises EncryptionKeyError.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read(MAX_BYTES + 1)
    except OSError as error:  # it has the path, which may be a key that was set by mistake
        user = f" by user id {os.geteuid()}" if isinstance(error, PermissionError) else ""
        raise EncryptionKeyError(
            f"The file that {FILE} names cannot be read{user}: {error.strerror}."
        ) from None
    if mode & 0o077:
        log(logging.WARNING, "others can read the key file", path=str(path), mode=f"{mode:04o}")
    return _of_sane_size(text, FILE)


def run_key_command(command: str, seconds: float = COMMAND_SECONDS) -> bytes:
    """What a command prints; run without a shell and without input, its messages passed on.

    Raises EncryptionKeyError, which shows neither the command nor its output, where it cannot be
    started, fails, or is not done in time.
    """
    deadline = time.monotonic() + seconds
    process = _start(command)
    try:
        text = _read(process, deadline)
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):  # the latter carries the command: not chained
        raise EncryptionKeyError(
            f"The command of {COMMAND} was not done after {seconds:g} seconds and was ended."
        ) from None
    finally:
        _end(process)
    if status != 0:
        raise EncryptionKeyError(
            f"The command of {COMMAND} failed with exit status {status}. Run it by hand to see why."
        )
    return text


def _start(command: str) -> subprocess.Popen[bytes]:
    try:
        arguments = shlex.split(command)
    except ValueError:  # its traceback has the command
        arguments = []
    if not arguments:
        raise EncryptionKeyError(
            f"{COMMAND} is not a command line: it is empty or a quote is not closed."
        )
    try:
        return subprocess.Popen(  # noqa: S603 - the operator's own command, without a shell
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that what it starts can be ended with it
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not valid"
        raise EncryptionKeyError(
            f"The command of {COMMAND} cannot be started: {reason}. It is run without a shell."
        ) from None


def _read(process: "subprocess.Popen[bytes]", deadline: float) -> bytes:
    """Everything it prints. A plain read would wait for as long as any grandchild lives."""
    pipe = _output(process)
    text = b""
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while len(text) <= MAX_BYTES:
            if not ready.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            part = os.read(pipe.fileno(), MAX_BYTES)
            if not part:
                return text
            text += part
    return _of_sane_size(text, COMMAND)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    _output(process).close()
    process.wait()


def _output(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _of_sane_size(text: bytes, source: str) -> bytes:
    if len(text) > MAX_BYTES:
        raise EncryptionKeyError(
            f"{source} gives more than {MAX_BYTES} bytes, more than any key has."
        )
    return text
