"""Encryption at rest: what is encrypted is decrypted in its own context, and in no other."""

import base64
import copy
import hashlib
import io
import itertools
import logging
import pickle
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.encryption.embeddings import EmbeddingCipher, EncryptedTemplate
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
    fingerprint,
    new_key_line,
    parse_keys,
    read_key_file,
    run_key_command,
)
from app.encryption.ring import NONCE_BYTES, OVERHEAD, TAG_BYTES, DataKey, KeyRing, WrappedKey
from app.errors import DamagedData, EncryptionKeyError, EncryptionKeyMissing, LikenessError
from app.settings import Settings

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


@pytest.fixture
def cipher() -> EmbeddingCipher:
    return EmbeddingCipher(ring("a"), "database-1")


# --- an envelope -------------------------------------------------------------------------------


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


# --- the ring ----------------------------------------------------------------------------------


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
    impostor = KeyRing([Key("a", material("b"))])
    with pytest.raises(DamagedData):
        impostor.unwrap(wrapped, b"row")
    assert impostor.fingerprints != ring("a").fingerprints


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


# --- embeddings in their rows ------------------------------------------------------------------


def test_an_embedding_comes_back_bit_by_bit(cipher: EmbeddingCipher) -> None:
    embedding = np.random.default_rng(1).normal(size=512).astype(np.float32)
    person_key, wrapped = cipher.new_person_key(1, 2)
    encrypted = cipher.encrypt_embedding(person_key, "face", embedding)
    assert len(encrypted) == 512 * 4 + OVERHEAD
    opened = cipher.decrypt_embedding(
        cipher.decrypt_person_key(1, 2, wrapped), "face", encrypted, 512
    )
    assert opened.dtype == np.float32
    assert np.array_equal(opened, embedding)


@pytest.mark.parametrize(
    ("database", "collection", "person"),
    [("database-2", 1, 2), ("database-1", 3, 2), ("database-1", 1, 3), ("database-1", 2, 1)],
)
def test_a_persons_key_opens_in_its_own_row_only(
    cipher: EmbeddingCipher, database: str, collection: int, person: int
) -> None:
    _, wrapped = cipher.new_person_key(1, 2)
    with pytest.raises(DamagedData):
        EmbeddingCipher(cipher.ring, database).decrypt_person_key(collection, person, wrapped)


def test_embeddings_cannot_be_swapped(cipher: EmbeddingCipher) -> None:
    ours, _ = cipher.new_person_key(1, 2)
    theirs, _ = cipher.new_person_key(1, 3)
    encrypted = cipher.encrypt_embedding(ours, "face", np.ones(4, np.float32))
    for person_key, face, dimension in ((ours, "other", 4), (theirs, "face", 4), (ours, "face", 3)):
        with pytest.raises(DamagedData):
            cipher.decrypt_embedding(person_key, face, encrypted, dimension)


def test_a_wrapped_key_is_no_embedding(cipher: EmbeddingCipher) -> None:
    person_key, wrapped = cipher.new_person_key(1, 2)
    with pytest.raises(DamagedData):
        cipher.decrypt_embedding(person_key, "face", wrapped.ciphertext, 8)


def _rows(cipher: EmbeddingCipher, vectors: np.ndarray) -> Iterator[EncryptedTemplate]:
    """Two templates a person, the persons of two collections, taking turns."""
    keys = {person: cipher.new_person_key(person % 2, person) for person in range(len(vectors))}
    for number, vector in enumerate(vectors):
        person = number // 2
        person_key, wrapped = keys[person]
        face_id = f"face-{number}"
        encrypted = cipher.encrypt_embedding(person_key, face_id, vector)
        yield EncryptedTemplate(person % 2, person, wrapped, face_id, encrypted)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_many_open_as_one_by_one(cipher: EmbeddingCipher, count: int) -> None:
    vectors = np.random.default_rng(2).normal(size=(count, 16)).astype(np.float32)
    rows = list(_rows(cipher, vectors))
    opened = cipher.decrypt_embeddings(rows, 16)
    assert opened.dtype == np.float32
    assert opened.flags.c_contiguous
    assert opened.flags.writeable
    assert np.array_equal(opened, vectors)
    assert np.array_equal(cipher.decrypt_embeddings(rows[::-1], 16), vectors[::-1])


def test_one_damaged_row_of_many_is_an_error(cipher: EmbeddingCipher) -> None:
    rows = list(_rows(cipher, np.ones((6, 16), np.float32)))
    swapped = [*rows[:4], rows[5], rows[4]]
    assert cipher.decrypt_embeddings(swapped, 16).shape == (6, 16)
    stolen = EncryptedTemplate(
        rows[0].collection, 0, rows[0].person_key, "face-0", rows[5].ciphertext
    )
    for changed in ([*rows, stolen], [stolen]):
        with pytest.raises(DamagedData):
            cipher.decrypt_embeddings(changed, 16)
    with pytest.raises(DamagedData):
        cipher.decrypt_embeddings(rows, 17)


def test_rotation_leaves_embeddings_as_they_are(cipher: EmbeddingCipher) -> None:
    embedding = np.ones(16, np.float32)
    person_key, wrapped = cipher.new_person_key(1, 2)
    encrypted = cipher.encrypt_embedding(person_key, "face", embedding)
    rotated = EmbeddingCipher(ring("b", "a"), "database-1").rewrap_person_key(1, 2, wrapped)
    after = EmbeddingCipher(ring("b"), "database-1")
    opened = after.decrypt_embeddings([EncryptedTemplate(1, 2, rotated, "face", encrypted)], 16)
    assert np.array_equal(opened[0], embedding)


# --- files -------------------------------------------------------------------------------------


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
    impostor = KeyRing([Key("a", material("b"))])
    for keys, purpose, name in (
        (ring("a"), b"export", b"f"),
        (ring("a"), b"index", b"g"),
        (impostor, b"index", b"f"),
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


# --- how keys are written ----------------------------------------------------------------------


def test_a_key_line_that_was_generated_can_be_read() -> None:
    (made,) = parse_keys(new_key_line().encode(), HERE)
    assert made.key_id == made.fingerprint == fingerprint(made.material)
    assert len(made.material) == 32
    (named,) = parse_keys(new_key_line("prod-1").encode(), HERE)
    assert named.key_id == "prod-1"
    assert named.material != made.material


def test_the_first_line_is_active() -> None:
    text = f"\ufeff# of 2025\r\n\r\n  new: {written('new')}  \r\n{written('old')}\n"
    keys = parse_keys(text.encode(), HERE)
    assert [k.material for k in keys] == [material("new"), material("old")]
    assert KeyRing(keys).active_id == "new"
    assert list(KeyRing(keys).fingerprints) == ["new", fingerprint(material("old"))]


@given(st.binary(min_size=32, max_size=32).filter(lambda b: len(set(b)) > 20 and max(b) > 127))
def test_both_alphabets_with_and_without_padding(raw: bytes) -> None:
    for encoded in (base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
        for line in (encoded, encoded.rstrip(b"=")):
            (read,) = parse_keys(line, HERE)
            assert read.material == raw


SECRET = written("secret")
BAD = {
    "empty": "",
    "only a comment": "# key",
    "short": base64.b64encode(material("x")[:31]).decode(),
    "long": base64.b64encode(material("x") + b"!").decode(),
    "hex": material("secret").hex(),
    "no base64": "§" + SECRET[1:],
    "a space within": SECRET[:9] + " " + SECRET[9:],
    "padding within": SECRET[:8] + "=" + SECRET[9:],
    "not text": None,
    "one byte repeated": base64.b64encode(b"\7" * 32).decode(),
    "a pattern": base64.b64encode(material("x")[:8] * 4).decode(),
    "a passphrase": base64.b64encode(b"correct horse battery staple 123").decode(),
    "no id": f":{SECRET}",
    "a bad id": f"of production:{SECRET}",
    "two colons": f"a:b:{SECRET}",
    "a long id": f"{'a' * 33}:{SECRET}",
    "the key first": f"{SECRET.rstrip('=')}:prod",
    "two keys in a line": f"{SECRET.rstrip('=')}:{written('y')}",
    "an id twice": f"a:{SECRET}\na:{written('y')}",
    "a key twice": f"a:{SECRET}\nb:{SECRET}",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_bad_keys_are_refused_without_being_shown(text: str | None) -> None:
    with pytest.raises(EncryptionKeyError) as caught:
        parse_keys(b"\xff\xfe" + SECRET.encode() if text is None else text.encode(), HERE)
    assert HERE in caught.value.detail
    _shows_no_key(_everything_of(caught.value))


def test_a_new_id_is_checked() -> None:
    with pytest.raises(EncryptionKeyError):
        new_key_line("a key")


# --- where keys come from ----------------------------------------------------------------------


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Settings of an environment: settings(KEY=..., KEY_FILE=...)."""

    def read(**variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(f"LIKENESS_ENCRYPTION_{name}", value)
        return Settings()

    return read


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text(f"secret:{SECRET}\n")
    file.chmod(0o600)
    return file


def test_without_a_source_there_is_no_ring(settings: Callable[..., Settings]) -> None:
    assert KeyRing.from_settings(settings()) is None


def test_every_source_gives_the_same_key(
    settings: Callable[..., Settings], key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("KEY", f"secret:{SECRET}"),
        ("KEY_FILE", str(key_file)),
        ("KEY_COMMAND", f"cat {shlex.quote(str(key_file))}"),
    ):
        found = KeyRing.from_settings(settings(**{name: value}))
        assert found is not None
        assert found.fingerprints == {"secret": fingerprint(material("secret"))}
        monkeypatch.delenv(f"LIKENESS_ENCRYPTION_{name}")


def test_two_sources_are_refused(settings: Callable[..., Settings], key_file: Path) -> None:
    with pytest.raises(EncryptionKeyError, match="_KEY and LIKENESS_ENCRYPTION_KEY_FILE are set"):
        KeyRing.from_settings(settings(KEY=SECRET, KEY_FILE=str(key_file)))


@pytest.mark.parametrize("name", ["KEY", "KEY_FILE", "KEY_COMMAND"])
def test_a_source_that_is_named_must_give_a_key(
    settings: Callable[..., Settings], name: str
) -> None:
    with pytest.raises(EncryptionKeyError, match=f"LIKENESS_ENCRYPTION_{name}"):
        KeyRing.from_settings(settings(**{name: ""}))


def test_a_file_that_others_can_read_is_warned_of(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_key_file(key_file)
    assert not caplog.records
    key_file.chmod(0o640)
    assert read_key_file(key_file).decode().strip() == f"secret:{SECRET}"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert vars(record)["fields"]["mode"] == "0640"
    _shows_no_key(str(vars(record)))


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path, Path(SECRET)):
        with pytest.raises(EncryptionKeyError, match="LIKENESS_ENCRYPTION_KEY_FILE") as caught:
            read_key_file(path)
        _shows_no_key(_everything_of(caught.value))
    with pytest.raises(EncryptionKeyError, match="more than"):
        read_key_file(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (python(f"print('{SECRET}'); raise SystemExit(3)"), "exit status 3"),
        (python("import os; os.abort()"), "exit status -6"),
        (f"/absent/{SECRET}", "No such file"),
        (f"echo '{SECRET}", "a quote is not closed"),
        ("   ", "empty"),
        (python("while True: print('A' * 1000)"), "more than"),
        (f"echo {SECRET} | cat", "without a shell|not the base64"),
    ],
)
def test_a_command_that_fails_says_so_and_shows_nothing(
    settings: Callable[..., Settings], command: str, message: str
) -> None:
    with pytest.raises(EncryptionKeyError, match=message) as caught:
        KeyRing.from_settings(settings(KEY_COMMAND=command))
    _shows_no_key(_everything_of(caught.value))


@pytest.mark.parametrize(
    "code",
    [
        f"import time; print('{SECRET}', flush=True); time.sleep(60)",
        "import os, time; os.fork(); time.sleep(60)",
        "import os, time; os.close(1); time.sleep(60)",
    ],
    ids=["slow", "with a child that holds the pipe", "silent"],
)
def test_a_command_has_a_deadline(code: str) -> None:
    start = time.monotonic()
    with pytest.raises(EncryptionKeyError, match=r"not done after 0\.3 seconds") as caught:
        run_key_command(python(code), 0.3)
    assert time.monotonic() - start < 20
    _shows_no_key(_everything_of(caught.value))


def test_a_command_has_no_input_and_its_own_messages_pass(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = "import sys; print(len(sys.stdin.read())); print('encrypted', file=sys.stderr)"
    assert run_key_command(python(code)) == b"0\n"
    assert capfd.readouterr().err == "encrypted\n"


# --- nothing shows a key -----------------------------------------------------------------------


def _everything_of(error: LikenessError) -> str:
    """All that a log, an answer or a terminal could print of an error."""
    lines = "".join(traceback.format_exception(error))
    # The source lines of this file name what they pass; values never come from there.
    return f"{lines} {error!r} {error.detail} {error.extra} {error.__cause__!r}"


def _shows_no_key(text: str) -> None:
    raw = material("secret")
    for shown in (SECRET, SECRET.rstrip("="), raw.hex(), repr(raw), str(list(raw))):
        assert shown not in text
    assert SECRET[:9] not in text


def test_no_key_is_in_a_repr() -> None:
    secret = Key("secret", material("secret"))
    data_key = DataKey(material("secret"))
    keys = KeyRing([secret])
    held = Settings(
        encryption_key=SecretStr(SECRET), encryption_key_command=SecretStr(f"echo {SECRET}")
    )
    encryptor = FileEncryptor(keys, b"index", b"f")
    for shown in (secret, data_key, keys, held, encryptor, EmbeddingCipher(keys, "db"), [secret]):
        _shows_no_key(f"{shown} {shown!r}")
    assert repr(keys) == "KeyRing(active='secret', keys=['secret'])"


def test_keys_are_not_copied_by_accident() -> None:
    for held in (DataKey.new(), ring("a")):
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="pickled or copied"):
                duplicate(held)
