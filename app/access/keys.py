"""Access keys: what they allow and how much they may be used (requests and photos a second,
requests at a time, photos a day), their tokens, and the pepper: a secret of the deployment, without
which a token cannot be checked against its stored digest."""

import base64
import binascii
import hashlib
import math
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from app.disk import exclusive, private_folder, write_whole
from app.errors import AccessKeyError
from app.settings import Settings

MIN_RATE, MAX_RATE = 0.001, 1e6
MAX_COUNT = 10**12


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """The limits of a key; None: no limit. Rates are averages: the number for one second may
    be sent at once."""

    requests_per_second: float | None = None
    photos_per_second: float | None = None
    concurrent_requests: int | None = None
    photos_per_day: int | None = None

    def __bool__(self) -> bool:
        return self is not UNLIMITED and self != UNLIMITED

    def members(self) -> dict[str, Any]:
        """The limits that there are, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


UNLIMITED = KeyLimits()


def stored_limits(members: dict[str, Any] | None) -> KeyLimits:
    """The limits that a database holds. Those of a newer version are ignored."""
    known = {field.name for field in fields(KeyLimits)}
    return KeyLimits(**{name: value for name, value in (members or {}).items() if name in known})


class TokenBucket:
    """Admits `rate` units a second on average, and at once the number for one second.

    More units than the bucket can hold are admitted when it is full; it is in debt afterwards, so
    that the average rate is kept. Not thread-safe.
    """

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self.rate = rate
        self.capacity = max(1, math.ceil(rate))
        self._level = float(self.capacity)

    @property
    def window_s(self) -> int:
        """Seconds in which an empty bucket becomes full, rounded up."""
        return max(1, math.ceil(self.capacity / self.rate))

    @property
    def state(self) -> tuple[float, float]:
        """What is left, and at which time of the clock."""
        return self._level, self._at

    @state.setter
    def state(self, value: tuple[float, float]) -> None:
        level, self._at = value
        self._level = min(level, self.capacity)

    def change_rate(self, rate: float) -> None:
        """Continue with another rate. What was used counts."""
        self._refill()
        self.rate, self.capacity = rate, max(1, math.ceil(rate))
        self._level = min(self._level, self.capacity)

    def take(self, units: int = 1) -> float:
        """Take units and return 0; if there are not enough, take none and return the seconds until
        there are."""
        self._refill()
        missing = min(units, self.capacity) - self._level
        # A level that is too low by a rounding error must not make the caller wait once more.
        if missing > 1e-9:
            return missing / self.rate
        self._level -= units
        return 0.0

    def remaining(self) -> int:
        """Units that could be taken at once."""
        self._refill()
        return max(0, math.floor(self._level + 1e-9))

    def seconds_to_full(self) -> int:
        """Seconds until the bucket is full, rounded up."""
        self._refill()
        return math.ceil((self.capacity - self._level) / self.rate)

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self.capacity, self._level + max(0.0, now - self._at) * self.rate)
        self._at = now


_ID_CHARACTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # none that looks like another
_ID_LENGTH = 12
_SECRET_BYTES = 32
_TOKEN = re.compile(r"lk_([a-z0-9]{12})_[A-Za-z0-9_-]{43}")
DIGEST_BYTES = 32


class Scope(StrEnum):
    """What an access key allows. No scope includes another."""

    DETECT = "detect"  # detect, embed: nothing of the gallery
    IDENTIFY = "identify"  # identify, verify
    ENROLL = "enroll"
    MANAGE = "manage"  # collections, persons, faces, deletion, imports, hygiene, calibration
    METRICS = "metrics"
    ADMIN = "admin"  # access keys, the audit log


# They concern the whole service: a key that is limited to collections cannot have them.
WHOLE_SERVICE = frozenset({Scope.METRICS, Scope.ADMIN})


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key without its secret. `collections`: the only ones it is for; None: all."""

    key_id: str
    name: str
    scopes: frozenset[Scope]
    collections: frozenset[str] | None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None  # to the hour
    limits: KeyLimits = UNLIMITED
    subject: str | None = None  # of a token: its claim `sub`; None for a stored key

    @property
    def actor(self) -> str:
        """Who uses it, as the audit log names them."""
        return f"key:{self.key_id}" if self.subject is None else f"token:{self.subject}"

    @property
    def limited_as(self) -> str:
        """The name under which its use is counted: that of a key, or a digest of the subject of a
        token."""
        if self.subject is None:
            return self.name
        return f"oidc:{hashlib.blake2b(self.subject.encode(), digest_size=16).hexdigest()}"

    @property
    def title(self) -> str:
        """How a sentence about it begins."""
        return f"The access key '{self.name}'" if self.subject is None else "The token's subject"

    def usable(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        expired = self.expires_at is not None and now >= self.expires_at
        return self.revoked_at is None and not expired

    def sees(self, collection: str) -> bool:
        """Whether it may know of a collection of that name."""
        return self.collections is None or collection in self.collections


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is made from."""

    name: str
    scopes: Collection[Scope]
    collections: Sequence[str] | None = None
    expires_at: datetime | None = None
    limits: KeyLimits = UNLIMITED


def new_token() -> tuple[str, str]:
    """The id and the token of a new key: 256 random bits after the id."""
    key_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    return key_id, f"lk_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def id_of(token: str) -> str | None:
    """The id in a token; None if the text does not have the form of a token."""
    found = _TOKEN.fullmatch(token)
    return None if found is None else found[1]


def digest_of(token: str, pepper: bytes) -> bytes:
    """The keyed digest that is stored (BLAKE2b). A token has 256 random bits, so no slow hash is
    needed against guessing; without the pepper a guess cannot even be checked."""
    return hashlib.blake2b(token.encode(), key=pepper, digest_size=DIGEST_BYTES).digest()


PEPPER_BYTES = 32
PEPPER_FILE = "access-pepper"


def read_pepper(settings: Settings) -> bytes:
    """LIKENESS_ACCESS_PEPPER, or the file in the data folder, which is made if it is missing.

    Raises AccessKeyError.
    """
    if settings.access_pepper is not None:
        return _decoded_pepper(settings.access_pepper.get_secret_value(), "LIKENESS_ACCESS_PEPPER")
    path = settings.data_dir / PEPPER_FILE
    try:
        if not path.exists():
            _make_pepper(path)
        return _decoded_pepper(path.read_text(encoding="ascii"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise AccessKeyError(f"{path} cannot be read or written: {error}.") from error


def audit_key(settings: Settings) -> bytes:
    """The key that signs the end of the audit log, derived from the pepper. Raises
    AccessKeyError."""
    pepper = read_pepper(settings)
    return hashlib.blake2b(b"audit log", key=pepper, digest_size=32, person=b"likeness").digest()


def fingerprint(pepper: bytes) -> str:
    """Distinguishes one pepper from another; safe to store."""
    return hashlib.blake2b(b"likeness access pepper", key=pepper, digest_size=8).hexdigest()


def _make_pepper(path: Path) -> None:
    private_folder(path.parent)
    with exclusive(path.with_name(f"{path.name}.lock")):
        if not path.exists():  # another process may have made it meanwhile
            write_whole(path, [base64.b64encode(secrets.token_bytes(PEPPER_BYTES))])


def _decoded_pepper(text: str, where: str) -> bytes:
    try:
        pepper = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        pepper = b""
    if len(pepper) != PEPPER_BYTES:
        raise AccessKeyError(
            f"{where} does not hold {PEPPER_BYTES} bytes in base64. Make such a value with "
            "`openssl rand -base64 32`, or restore the value that the keys were created with."
        )
    return pepper
