"""Data keys and the ring that wraps them: every part is authenticated."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.encryption.keys import (
    Key,
)
from app.encryption.ring import NONCE_BYTES, OVERHEAD, TAG_BYTES, DataKey, KeyRing, WrappedKey
from app.errors import DamagedData, EncryptionKeyError, EncryptionKeyMissing
from tests.encryption.keys import key, material, ring


@given(plaintext=st.binary(max_size=300), context=st.binary(max_size=60))
def test_what_is_encrypted_can_be_decrypted(plaintext: bytes, context: bytes) -> None:
    data_key = DataKey.new()
    encrypted = data_key.encrypt(plaintext, context)
    target = bytearray(len(plaintext))
    data_key.decrypt_into(encrypted, context, memoryview(target))
    assert data_key.decrypt(encrypted, context) == target == plaintext
    assert len(encrypted) == len(plaintext) + OVERHEAD


@given(data=st.data())
def test_no_bit_can_be_changed(data: st.DataObject) -> None:
    data_key = DataKey.new()
    encrypted = bytearray(data_key.encrypt(b"embedding", b"context"))
    at = data.draw(st.integers(0, len(encrypted) - 1))
    encrypted[at] ^= 1 << data.draw(st.integers(0, 7))
    _refuses(data_key, bytes(encrypted), b"context")


@pytest.mark.parametrize(
    "at",
    [0, 1, NONCE_BYTES, 1 + NONCE_BYTES, -TAG_BYTES - 1, -TAG_BYTES, -1],
    ids=["version", "nonce", "nonce end", "ciphertext", "ciphertext end", "tag", "tag end"],
)
def test_every_part_is_authenticated(at: int) -> None:
    data_key = DataKey.new()
    encrypted = bytearray(data_key.encrypt(b"embedding", b"context"))
    encrypted[at] ^= 3
    _refuses(data_key, bytes(encrypted), b"context")


def test_length_context_and_key_are_authenticated() -> None:
    data_key = DataKey.new()
    encrypted = data_key.encrypt(b"embedding", b"context")
    for changed in (b"", encrypted[:1], encrypted[:OVERHEAD], encrypted[:-1], encrypted + b"\0"):
        _refuses(data_key, changed, b"context")
    _refuses(data_key, encrypted, b"contexT")
    _refuses(DataKey.new(), encrypted, b"context")


def _refuses(data_key: DataKey, encrypted: bytes, context: bytes) -> None:
    with pytest.raises(DamagedData):
        data_key.decrypt(encrypted, context)
    with pytest.raises(DamagedData):
        data_key.decrypt_into(encrypted, context, memoryview(bytearray(9)))


def test_nothing_is_encrypted_the_same_twice() -> None:
    data_key = DataKey.new()
    nonces = {data_key.encrypt(b"embedding", b"")[1 : 1 + NONCE_BYTES] for _ in range(1000)}
    assert len(nonces) == 1000


def test_a_data_key_has_256_bits() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        DataKey(bytes(16))
    assert DataKey.new().material != DataKey.new().material


def test_the_active_key_wraps_and_older_ones_still_open() -> None:
    data_key = DataKey.new()
    wrapped = ring("old").wrap(data_key, b"row")
    both = ring("new", "old")
    assert both.unwrap(wrapped, b"row").material == data_key.material
    assert both.wrap(data_key, b"row").key_id == both.active_id == "new"


def test_rotation_changes_the_wrapping_not_the_data_key() -> None:
    data_key = DataKey.new()
    old = ring("old").wrap(data_key, b"row")
    new = ring("new", "old").rewrap(old, b"row")
    assert new.key_id == "new"
    assert new.ciphertext != old.ciphertext
    assert ring("new").unwrap(new, b"row").material == data_key.material
    assert ring("new").rewrap(new, b"row") is new
    with pytest.raises(EncryptionKeyMissing):
        ring("new").unwrap(old, b"row")


def test_a_key_is_not_rewrapped_in_another_context() -> None:
    wrapped = ring("old").wrap(DataKey.new(), b"row")
    with pytest.raises(DamagedData):
        ring("new", "old").rewrap(wrapped, b"another row")


def test_another_key_of_the_same_id_opens_nothing() -> None:
    wrapped = ring("a").wrap(DataKey.new(), b"row")
    other = KeyRing([Key("a", material("b"))])
    with pytest.raises(DamagedData):
        other.unwrap(wrapped, b"row")
    assert other.fingerprints != ring("a").fingerprints


def test_an_absent_key_is_named_to_the_log_and_not_to_clients() -> None:
    with pytest.raises(EncryptionKeyMissing) as caught:
        ring("a").unwrap(WrappedKey("prod-7", b""), b"row")
    assert "prod-7" not in caught.value.detail
    assert "prod-7" in repr(caught.value.__cause__)
    with pytest.raises(EncryptionKeyMissing):
        ring("a").file_key("prod-7", b"salt", b"index")


def test_a_start_names_all_keys_that_are_missing() -> None:
    ring("a", "b").require(["b", "a", "b"])
    with pytest.raises(EncryptionKeyError, match=r"not given: c, d\."):
        ring("a", "b").require(["d", "a", "c", "d"])


def test_a_ring_has_keys_of_different_ids() -> None:
    for keys in ([], [key("a"), key("a")]):
        with pytest.raises(ValueError, match="no id twice"):
            KeyRing(keys)


def test_every_file_has_a_key_of_its_own() -> None:
    keys = ring("a", "b")
    derived = [
        keys.file_key(key_id, salt, purpose)
        for key_id, salt, purpose in itertools.product("ab", (b"1", b"2"), (b"index", b"export"))
    ]
    assert len(set(derived)) == 8
    assert not set(derived) & {material("a"), material("b")}
