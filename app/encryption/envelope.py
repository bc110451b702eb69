"""One short message under one key, bound to the place it belongs to.

An envelope is 1 version byte | 12 bytes of random nonce | ciphertext | 16 bytes of tag, made with
AES-256-GCM (NIST SP 800-38D). The context is authenticated but not stored: the caller that opens
the envelope must know where it belongs. Random nonces are safe for 2^32 messages under one key
(section 8.3); a person's key encrypts a few, the operator's key one a person.
"""

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.encryption.keys import KEY_BYTES
from app.errors import DamagedData

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
        self._cipher = AESGCM(material)

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
        self._check(ciphertext)
        try:
            return self._cipher.decrypt(ciphertext[1:_BODY], ciphertext[_BODY:], context)
        except InvalidTag as error:
            raise _damaged() from error

    def decrypt_into(self, ciphertext: bytes, context: bytes, target: memoryview) -> None:
        """Write the plaintext, which must have the target's size, into it. Raises DamagedData."""
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
        "Stored data cannot be decrypted: it was damaged, or moved or changed outside the service, "
        "or its key is another one of the same id. Restore it from a backup, or give the right key."
    )
