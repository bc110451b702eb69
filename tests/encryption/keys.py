"""Keys of the tests, and what must not show one."""

import base64
import hashlib
import traceback

from app.encryption.keys import (
    Key,
)
from app.encryption.ring import KeyRing
from app.errors import LikenessError

HERE = "here"


def material(name: str) -> bytes:
    """A key of its own for each name, as random as a key should look."""
    return hashlib.sha256(name.encode()).digest()


def key(name: str) -> Key:
    return Key(name, material(name))


def written(name: str) -> str:
    return base64.b64encode(material(name)).decode()


def ring(*names: str) -> KeyRing:
    return KeyRing([key(name) for name in names])


SECRET = written("secret")


def everything_of(error: LikenessError) -> str:
    """All that a log, an answer or a terminal could print of an error."""
    lines = "".join(traceback.format_exception(error))
    # The source lines of this file name what they pass; values never come from there.
    return f"{lines} {error!r} {error.detail} {error.extra} {error.__cause__!r}"


def shows_no_key(text: str) -> None:
    raw = material("secret")
    for shown in (SECRET, SECRET.rstrip("="), raw.hex(), repr(raw), str(list(raw))):
        assert shown not in text
    assert SECRET[:9] not in text
