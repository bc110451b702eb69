"""Keys of the operator: where they come from, how they are written, and that nothing shows one."""

import base64
import copy
import logging
import pickle
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from app.encryption.embeddings import EmbeddingCipher
from app.encryption.files import (
    FileEncryptor,
)
from app.encryption.keys import (
    Key,
    fingerprint,
    new_key_line,
    parse_keys,
    read_key_file,
    run_key_command,
)
from app.encryption.ring import DataKey, KeyRing
from app.errors import EncryptionKeyError
from app.settings import Settings
from tests.encryption.keys import (
    HERE,
    SECRET,
    everything_of,
    material,
    ring,
    shows_no_key,
    written,
)


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
    shows_no_key(everything_of(caught.value))


def test_a_new_id_is_checked() -> None:
    with pytest.raises(EncryptionKeyError):
        new_key_line("a key")


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
    settings: Callable[..., Settings], name: str, tmp_path: Path
) -> None:
    """Otherwise a mistake would store embeddings in the clear."""
    with pytest.raises(ValidationError, match="must not be empty"):
        settings(**{name: ""})
    nothing = tmp_path / "nothing"
    nothing.touch(0o600)
    value = {"KEY": " ", "KEY_FILE": str(nothing), "KEY_COMMAND": "true"}[name]
    with pytest.raises(EncryptionKeyError, match=f"LIKENESS_ENCRYPTION_{name}"):
        KeyRing.from_settings(settings(**{name: value}))


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
    shows_no_key(str(vars(record)))


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path, Path(SECRET)):
        with pytest.raises(EncryptionKeyError, match="LIKENESS_ENCRYPTION_KEY_FILE") as caught:
            read_key_file(path)
        shows_no_key(everything_of(caught.value))
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
    shows_no_key(everything_of(caught.value))


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
    shows_no_key(everything_of(caught.value))


def test_a_command_has_no_input_and_its_own_messages_pass(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = "import sys; print(len(sys.stdin.read())); print('encrypted', file=sys.stderr)"
    assert run_key_command(python(code)) == b"0\n"
    assert capfd.readouterr().err == "encrypted\n"


def test_no_key_is_in_a_repr() -> None:
    secret = Key("secret", material("secret"))
    data_key = DataKey(material("secret"))
    keys = KeyRing([secret])
    held = Settings(
        encryption_key=SecretStr(SECRET), encryption_key_command=SecretStr(f"echo {SECRET}")
    )
    encryptor = FileEncryptor(keys, b"index", b"f")
    for shown in (secret, data_key, keys, held, encryptor, EmbeddingCipher(keys), [secret]):
        shows_no_key(f"{shown} {shown!r}")
    assert repr(keys) == "KeyRing(active='secret', keys=['secret'])"


def test_keys_are_not_copied_by_accident() -> None:
    for held in (DataKey.new(), ring("a")):
        for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="pickled or copied"):
                duplicate(held)
