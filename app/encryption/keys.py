"""Keys of the operator: how one is written and read, and how a weak one is recognised."""

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field

from app.errors import EncryptionKeyError

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
    """Keys, one a line, the active one first: base64 (or base64url) of 32 bytes, or `id:base64`.

    A key without an id gets its fingerprint for one. Empty lines and those that start with # are
    passed over. Raises EncryptionKeyError, which names `source` and the line and never the key,
    where a line is no key, a key is weak, or an id or a key is there twice.
    """
    keys = [_parse(line, f"Line {number} of {source}") for number, line in _lines(text, source)]
    if not keys:
        raise EncryptionKeyError(f"{source} holds no key. {_REMEDY}")
    if len({key.key_id for key in keys}) < len(keys):
        raise EncryptionKeyError(f"Two keys of {source} have the same id. Give each its own.")
    if len({key.material for key in keys}) < len(keys):
        raise EncryptionKeyError(f"{source} holds the same key twice. Leave one of them out.")
    return tuple(keys)


def _lines(text: bytes, source: str) -> list[tuple[int, str]]:
    try:
        lines = text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:  # it carries the text: not chained
        raise EncryptionKeyError(
            f"{source} is not text. A key is written in base64, one a line. {_REMEDY}"
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
