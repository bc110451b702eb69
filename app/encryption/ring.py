"""The key ring: one active key that wraps, and older ones that still decrypt."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.encryption.envelope import DataKey
from app.encryption.keys import KEY_BYTES, Key
from app.encryption.sources import read_keys
from app.errors import EncryptionKeyError, EncryptionKeyMissing
from app.settings import Settings

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


def _derived(material: bytes, salt: bytes | None, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(material)
