"""Files encrypted in chunks: each chunk in its place of its file."""

import io

import numpy as np
import pytest

from app.encryption.files import (
    CHUNK,
    ENCRYPTED_CHUNK,
    FileDecryptor,
    FileEncryptor,
    decrypt_file,
    encrypt_file,
)
from app.encryption.keys import (
    Key,
)
from app.encryption.ring import TAG_BYTES, KeyRing
from app.errors import DamagedData, EncryptionKeyMissing
from tests.encryption.keys import material, ring


def _encrypted_chunks(chunks: list[bytes]) -> tuple[bytes, list[bytes]]:
    encryptor = FileEncryptor(ring("a"), b"index", b"file-1")
    last = len(chunks) - 1
    return encryptor.header, [
        encryptor.encrypt_chunk(c, last=i == last) for i, c in enumerate(chunks)
    ]


@pytest.mark.parametrize(
    "size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK], ids=lambda size: f"{size} bytes"
)
def test_a_file_comes_back(size: int) -> None:
    content = np.random.default_rng(3).bytes(size)
    encrypted = b"".join(
        encrypt_file(FileEncryptor(ring("a"), b"index", b"f"), io.BytesIO(content))
    )
    assert content == b"".join(decrypt_file(ring("b", "a"), io.BytesIO(encrypted), b"index", b"f"))
    assert size < 16 or content[:16] not in encrypted


def test_a_file_opens_for_its_purpose_under_its_name_with_its_key() -> None:
    encrypted = b"".join(
        encrypt_file(FileEncryptor(ring("a"), b"index", b"f"), io.BytesIO(b"content"))
    )
    other = KeyRing([Key("a", material("b"))])
    for keys, purpose, name in (
        (ring("a"), b"export", b"f"),
        (ring("a"), b"index", b"g"),
        (other, b"index", b"f"),
    ):
        with pytest.raises(DamagedData):
            list(decrypt_file(keys, io.BytesIO(encrypted), purpose, name))
    with pytest.raises(EncryptionKeyMissing):
        list(decrypt_file(ring("b"), io.BytesIO(encrypted), b"index", b"f"))


def test_a_file_cut_anywhere_is_noticed() -> None:
    content = bytes(CHUNK + 5)
    encrypted = b"".join(
        encrypt_file(FileEncryptor(ring("a"), b"index", b"f"), io.BytesIO(content))
    )
    header = len(encrypted) - ENCRYPTED_CHUNK - 5 - TAG_BYTES
    cuts = [
        *range(header + 2),
        header + ENCRYPTED_CHUNK,
        header + ENCRYPTED_CHUNK + 1,
        len(encrypted) - 1,
    ]
    for cut in cuts:
        with pytest.raises((DamagedData, EncryptionKeyMissing)):
            list(decrypt_file(ring("a"), io.BytesIO(encrypted[:cut]), b"index", b"f"))
    with pytest.raises(DamagedData):
        list(decrypt_file(ring("a"), io.BytesIO(encrypted + b"\0"), b"index", b"f"))


def test_every_byte_of_a_header_counts() -> None:
    encrypted = b"".join(
        encrypt_file(FileEncryptor(ring("a"), b"index", b"f"), io.BytesIO(b"content"))
    )
    for at in range(len(encrypted)):
        changed = bytearray(encrypted)
        changed[at] ^= 0x81
        with pytest.raises((DamagedData, EncryptionKeyMissing)):
            list(decrypt_file(ring("a"), io.BytesIO(bytes(changed)), b"index", b"f"))


def test_chunks_open_in_any_order_but_not_in_one_anothers_place() -> None:
    header, (first, second, third) = _encrypted_chunks([b"1st", b"2nd", b"3rd"])
    decryptor = FileDecryptor(ring("a"), header, b"index", b"file-1")
    assert decryptor.decrypt_chunk(2, third, last=True) == b"3rd"
    assert decryptor.decrypt_chunk(1, second) == b"2nd"
    assert decryptor.decrypt_chunk(0, first) == b"1st"
    for number, encrypted, last in ((1, first, False), (2, third, False), (1, second, True)):
        with pytest.raises(DamagedData):
            decryptor.decrypt_chunk(number, encrypted, last=last)


def test_chunks_do_not_open_in_another_file_of_the_same_name() -> None:
    _, chunks = _encrypted_chunks([b"1st", b"2nd"])
    header, _ = _encrypted_chunks([b"1st", b"2nd"])
    with pytest.raises(DamagedData):
        FileDecryptor(ring("a"), header, b"index", b"file-1").decrypt_chunk(0, chunks[0])


def test_an_encryptor_uses_no_number_twice() -> None:
    encryptor = FileEncryptor(ring("a"), b"index", b"f")
    with pytest.raises(ValueError, match="at most"):
        encryptor.encrypt_chunk(bytes(CHUNK + 1))
    assert encryptor.encrypt_chunk(b"same") != encryptor.encrypt_chunk(b"same")
    encryptor.encrypt_chunk(b"", last=True)
    with pytest.raises(ValueError, match="last chunk"):
        encryptor.encrypt_chunk(b"more")
