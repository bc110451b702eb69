"""Whole files, encrypted in chunks: what is derived from embeddings and kept on disk.

A file is a header (magic | version | length of the key id | key id | 32 bytes of salt) and chunks
of at most CHUNK bytes, each with its 16-byte tag. Its AES-256-GCM key is derived from the
operator's key, the salt and the file's purpose, so it encrypts one file only, and nonces may count:
11 bytes of the chunk's number and 1 that marks the last chunk (the STREAM construction: Hoang,
Reyhanitabar, Rogaway and Vizár, CRYPTO 2015). Header and file id are authenticated with each
chunk. Chunks that were swapped, dropped, cut off or taken from another file do not open.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

from app.encryption.ring import TAG_BYTES, KeyRing, cipher
from app.errors import DamagedData
from app.locks import new_lock

CHUNK = 1024 * 1024  # bytes of plaintext
ENCRYPTED_CHUNK = CHUNK + TAG_BYTES

_MAGIC = b"LIKENESS-SEALED\x01"
_SALT_BYTES = 32
_COUNTER_BYTES = 11


class FileEncryptor:
    """Encrypts one file, chunk by chunk, in order. Thread-safe.

    It numbers the chunks itself: a number that is used twice would disclose both chunks.
    """

    def __init__(self, ring: KeyRing, purpose: bytes, file_id: bytes) -> None:
        """`purpose` names the kind of file, `file_id` the file itself; decryption needs both."""
        salt = os.urandom(_SALT_BYTES)
        key_id = ring.active_id.encode()
        self.header = _MAGIC + bytes([len(key_id)]) + key_id + salt
        self._cipher = cipher(ring.file_key(ring.active_id, salt, purpose))
        self._context = self.header + file_id
        self._next = 0
        self._finished = False
        self._lock = new_lock("encryptor.number")

    def encrypt_chunk(self, plaintext: bytes, *, last: bool = False) -> bytes:
        """The next chunk, 16 bytes longer. ValueError after the last, or beyond CHUNK bytes."""
        if len(plaintext) > CHUNK:
            raise ValueError(f"a chunk has at most {CHUNK} bytes")
        with self._lock:
            if self._finished:
                raise ValueError("the last chunk of this file has been encrypted")
            number, self._next, self._finished = self._next, self._next + 1, last
        return self._cipher.encrypt(_nonce(number, last), plaintext, self._context)


class FileDecryptor:
    """Decrypts the chunks of one file, in any order. Thread-safe."""

    def __init__(self, ring: KeyRing, header: bytes, purpose: bytes, file_id: bytes) -> None:
        """Raises DamagedData for an invalid header, EncryptionKeyMissing for an absent key."""
        key_id, salt = _parse(header)
        self._cipher = cipher(ring.file_key(key_id, salt, purpose))
        self._context = header + file_id

    def decrypt_chunk(self, number: int, encrypted: bytes, *, last: bool = False) -> bytes:
        """The plaintext of chunk `number`, from 0, if it is that one. Raises DamagedData."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 (as in `cipher`)

        try:
            return self._cipher.decrypt(_nonce(number, last), encrypted, self._context)
        except InvalidTag as error:
            raise _damaged() from error


def encrypt_file(encryptor: FileEncryptor, source: BinaryIO) -> Iterator[bytes]:
    """What to write for everything that `source` (buffered: reads are full) still holds."""
    yield encryptor.header
    chunk = source.read(CHUNK)
    while following := source.read(CHUNK):
        yield encryptor.encrypt_chunk(chunk)
        chunk = following
    yield encryptor.encrypt_chunk(chunk, last=True)


def decrypt_file(
    ring: KeyRing, source: BinaryIO, purpose: bytes, file_id: bytes
) -> Iterator[bytes]:
    """The plaintext of an encrypted file, chunk by chunk.

    Each chunk is authenticated before it is returned; that none is missing is known when the
    iterator ends. Raises DamagedData or EncryptionKeyMissing.
    """
    decryptor = FileDecryptor(ring, read_header(source), purpose, file_id)
    number, encrypted = 0, source.read(ENCRYPTED_CHUNK)
    while following := source.read(ENCRYPTED_CHUNK):
        yield decryptor.decrypt_chunk(number, encrypted)
        number, encrypted = number + 1, following
    yield decryptor.decrypt_chunk(number, encrypted, last=True)


def read_header(source: BinaryIO) -> bytes:
    """The header that an encrypted file starts with. Raises DamagedData."""
    start = source.read(len(_MAGIC) + 1)
    if not start.startswith(_MAGIC) or len(start) != len(_MAGIC) + 1:
        raise _damaged()
    return start + source.read(start[-1] + _SALT_BYTES)


def _parse(header: bytes) -> tuple[str, bytes]:
    start = len(_MAGIC) + 1
    if len(header) < start or not header.startswith(_MAGIC):
        raise _damaged()
    key_id, salt = header[start:-_SALT_BYTES], header[-_SALT_BYTES:]
    if len(header) != start + header[start - 1] + _SALT_BYTES or not key_id.isascii():
        raise _damaged()
    return key_id.decode(), salt


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(_COUNTER_BYTES, "big") + bytes([last])


def _damaged() -> DamagedData:
    return DamagedData(
        "An encrypted file cannot be decrypted: it was damaged, cut short or changed outside "
        "the service. Delete it; it is rebuilt from the database."
    )
