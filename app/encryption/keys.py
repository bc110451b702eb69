"""Keys of the operator: where they come from (the environment, a file, or a command), how one is
written and read, and how a weak one is recognised.
"""

import base64
import binascii
import hashlib
import logging
import os
import re
import secrets
import selectors
import shlex
import signal
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from app.errors import EncryptionKeyError
from app.settings import Settings
from app.telemetry.logs import log

KEY_BYTES = 32  # AES-256

# Shorter than any way to write 32 bytes: a key in the place of its id is refused, never shown.
_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
# 32 random bytes hold fewer different values than this in one of 10^15 keys.
_LEAST_VALUES = 16
_URLSAFE = str.maketrans("-_", "+/")
_REMEDY = "Make a key with `likeness encryption generate`."


@dataclass(frozen=True, slots=True)
class Key:
    """A 256-bit key that wraps others, and the id that is stored beside what it wrapped."""

    key_id: str
    material: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """12 hex digits that differ between keys of one id and disclose nothing about the key."""
        return fingerprint(self.material)


def fingerprint(material: bytes) -> str:
    """The first 12 hex digits of a key's SHA-256, hashed apart from every other use of it."""
    return hashlib.sha256(b"likeness key id" + material).hexdigest()[:12]


def new_key_line(key_id: str | None = None) -> str:
    """A new random key as a line for `parse_keys`. Raises EncryptionKeyError for a bad id."""
    material = secrets.token_bytes(KEY_BYTES)
    if key_id is not None and not _ID.fullmatch(key_id):
        raise EncryptionKeyError(
            "An id of a key has 1 to 32 letters, digits, dots, dashes and underscores."
        )
    return f"{key_id or fingerprint(material)}:{base64.b64encode(material).decode()}"


def parse_keys(text: bytes, source: str) -> tuple[Key, ...]:
    """Keys, one per line, the active one first: base64 (or base64url) of 32 bytes, or `id:base64`.

    A key without an id gets its fingerprint for one. Empty lines and those that start with # are
    passed over. Raises EncryptionKeyError, which names `source` and the line and never the key,
    where a line is no key, a key is weak, or an id or a key is there twice.
    """
    keys = [_parse(line, f"Line {number} of {source}") for number, line in _lines(text, source)]
    if not keys:
        raise EncryptionKeyError(f"{source} contains no key. {_REMEDY}")
    if len({key.key_id for key in keys}) < len(keys):
        raise EncryptionKeyError(f"Two keys of {source} have the same id. Give each its own.")
    if len({key.material for key in keys}) < len(keys):
        raise EncryptionKeyError(f"{source} contains the same key twice. Remove one of them.")
    return tuple(keys)


def _lines(text: bytes, source: str) -> list[tuple[int, str]]:
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:  # it carries the text: not chained
        raise EncryptionKeyError(
            f"{source} is not text. A key is written in base64, one per line. {_REMEDY}"
        ) from None
    numbered = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]


def _parse(line: str, where: str) -> Key:
    key_id, colon, encoded = line.rpartition(":")
    if colon and not _ID.fullmatch(key_id):
        raise EncryptionKeyError(
            f"{where} has no usable id before the colon: 1 to 32 letters, digits, dots, dashes "
            "and underscores."
        )
    material = _decode(encoded.strip(), where)
    _refuse_weak(material, where)
    return Key(key_id or fingerprint(material), material)


def _decode(encoded: str, where: str) -> bytes:
    padded = encoded.rstrip("=").translate(_URLSAFE)
    padded += "=" * (-len(padded) % 4)
    try:
        material = base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError):
        material = b""
    if len(material) != KEY_BYTES:
        raise EncryptionKeyError(f"{where} is not the base64 of {KEY_BYTES} bytes. {_REMEDY}")
    return material


def _refuse_weak(material: bytes, where: str) -> None:
    if len(set(material)) < _LEAST_VALUES or all(0x20 <= byte < 0x7F for byte in material):
        raise EncryptionKeyError(
            f"{where} is a pattern or a text, not {KEY_BYTES} random bytes. {_REMEDY}"
        )


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
