"""Data keys, and the key ring that wraps them: one active key, and older ones that still decrypt.

An encrypted message ("envelope") is 1 version byte | 12 bytes of random nonce | ciphertext | 16
bytes of tag, made with AES-256-GCM (NIST SP 800-38D). The context is authenticated but not stored:
the caller that decrypts the message must know where it belongs. Random nonces are safe for 2^32
messages under one key (section 8.3); a person's key encrypts a few, the operator's key one for each
person.
"""

import hmac
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.encryption.keys import KEY_BYTES, Key, read_keys
from app.errors import DamagedData, EncryptionKeyError, EncryptionKeyMissing
from app.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = 1
NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD = 1 + NONCE_BYTES + TAG_BYTES

_VERSION = bytes([VERSION])
_BODY = 1 + NONCE_BYTES


class DataKey:
    """A 256-bit key that encrypts and decrypts. Neither `repr` nor `str` shows it."""

    __slots__ = ("_cipher", "material")

    def __init__(self, material: bytes) -> None:
        """The key of those 32 bytes; ValueError for any other number."""
        if len(material) != KEY_BYTES:
            raise ValueError(f"a data key has {KEY_BYTES} bytes")
        self.material = material
        self._cipher = cipher(material)

    @classmethod
    def new(cls) -> "DataKey":
        """A new key from the system's random source."""
        return cls(os.urandom(KEY_BYTES))

    def encrypt(self, plaintext: bytes, context: bytes) -> bytes:
        """The plaintext encrypted, OVERHEAD bytes longer, to be decrypted in that context."""
        nonce = os.urandom(NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, plaintext, context)

    def decrypt(self, ciphertext: bytes, context: bytes) -> bytes:
        """The plaintext, exactly as it was encrypted in that context. Raises DamagedData."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 (as in `cipher`)

        self._check(ciphertext)
        try:
            return self._cipher.decrypt(ciphertext[1:_BODY], ciphertext[_BODY:], context)
        except InvalidTag as error:
            raise _damaged() from error

    def decrypt_into(self, ciphertext: bytes, context: bytes, target: memoryview) -> None:
        """Write the plaintext, which must have the target's size, into it. Raises DamagedData."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 (as in `cipher`)

        self._check(ciphertext)
        if len(ciphertext) != target.nbytes + OVERHEAD:
            raise _damaged()
        try:
            self._cipher.decrypt_into(ciphertext[1:_BODY], ciphertext[_BODY:], context, target)
        except InvalidTag as error:
            raise _damaged() from error

    def mark(self, text: str) -> str:
        """A keyed digest (HMAC-SHA-256, hexadecimal): equal for equal texts under this key, and
        without the key neither computed nor matched."""
        key = hmac.digest(self.material, b"likeness content mark v1", "sha256")
        return hmac.new(key, text.encode(), "sha256").hexdigest()

    @staticmethod
    def _check(ciphertext: bytes) -> None:
        if len(ciphertext) < OVERHEAD or ciphertext[0] != VERSION:
            raise _damaged()

    def __repr__(self) -> str:
        return "DataKey(…)"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled or copied")


def _damaged() -> DamagedData:
    return DamagedData(
        "Stored data cannot be decrypted: it was damaged, or moved or changed outside the "
        "service, or the key that was given differs from the one with this id that it was "
        "encrypted with. Restore it from a backup, or give the right key."
    )


_WRAPPING = b"likeness wrap v1"
_FILES = b"likeness file v1\0"


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as it may be stored: an envelope, and the id of the key that decrypts it."""

    key_id: str
    ciphertext: bytes


class KeyRing:
    """The operator's keys. Thread-safe; neither `repr` nor `str` shows a key.

    A key has one use: what wraps data keys and what encrypts a file are derived from the
    operator's key by HKDF-SHA256 (RFC 5869), each by its own name.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        """A ring of at least one key, the active one first, each of its own id."""
        self._keys = {key.key_id: key for key in keys}
        if not keys or len(self._keys) < len(keys):
            raise ValueError("a key ring has at least one key, and no id twice")
        self._wrapping = {
            key.key_id: DataKey(_derived(key.material, None, _WRAPPING)) for key in keys
        }
        self._active = keys[0]

    @classmethod
    def from_settings(cls, settings: Settings) -> "KeyRing | None":
        """The ring that the settings name; None where they name none: nothing is encrypted then.

        Raises EncryptionKeyError.
        """
        keys = read_keys(settings)
        return None if keys is None else cls(keys)

    @property
    def active_id(self) -> str:
        """Id of the key that new data keys are wrapped by."""
        return self._active.key_id

    @property
    def fingerprints(self) -> dict[str, str]:
        """A fingerprint for each id, the active one first; safe to store and to show."""
        return {key.key_id: key.fingerprint for key in self._keys.values()}

    def require(self, key_ids: Iterable[str]) -> None:
        """What a start asks: raise EncryptionKeyError unless every one of these keys is here."""
        missing = sorted(set(key_ids) - self._keys.keys())
        if missing:
            raise EncryptionKeyError(
                f"The database is encrypted by keys that were not given: {', '.join(missing)}. Add "
                f"them below the active key, {self.active_id}."
            )

    def wrap(self, data_key: DataKey, context: bytes) -> WrappedKey:
        """The data key under the active key, to be unwrapped in that context only."""
        encrypted = self._wrapping[self.active_id].encrypt(data_key.material, context)
        return WrappedKey(self.active_id, encrypted)

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> DataKey:
        """The data key that was wrapped in that context.

        Raises EncryptionKeyMissing where its key is not in the ring, DamagedData where it opens
        nothing.
        """
        try:
            wrapping = self._wrapping[wrapped.key_id]
        except KeyError as error:
            raise _missing() from error
        return DataKey(wrapping.decrypt(wrapped.ciphertext, context))

    def rewrap(self, wrapped: WrappedKey, context: bytes) -> WrappedKey:
        """The same data key under the active key, at once if it is already. Raises as `unwrap`."""
        if wrapped.key_id == self.active_id:
            return wrapped
        return self.wrap(self.unwrap(wrapped, context), context)

    def file_key(self, key_id: str, salt: bytes, purpose: bytes) -> bytes:
        """32 bytes for one file of one purpose; `salt` is random and of the file's own.

        Raises EncryptionKeyMissing.
        """
        try:
            material = self._keys[key_id].material
        except KeyError as error:
            raise _missing() from error
        return _derived(material, salt, _FILES + purpose)

    def __repr__(self) -> str:
        return f"KeyRing(active={self.active_id!r}, keys={list(self._keys)})"

    def __reduce__(self) -> str:
        raise TypeError("keys are not pickled or copied")


def _missing() -> EncryptionKeyMissing:
    """The id is the cause, for the log; it is nothing for clients."""
    return EncryptionKeyMissing(
        "Stored data is encrypted by a key that the service was not given. Start it with that key "
        "among its keys; the log has the key's id."
    )


def cipher(material: bytes) -> "AESGCM":
    """AES-GCM under a key of 32 bytes. Its library is imported where it is used: a service without
    encryption starts without it."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    return AESGCM(material)


def _derived(material: bytes, salt: bytes | None, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 (as in `cipher`)
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(material)
