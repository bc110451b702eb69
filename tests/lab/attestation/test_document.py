"""The signed file and its keys: nothing can be changed in it, nor signed by somebody else. Two
attestations compared: what rose by more than chance, what else changed."""

import copy
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from app.lab.attestation.document import (
    MAX_BYTES,
    AttestationError,
    InvalidAttestation,
    compare,
    fingerprint,
    generate_key,
    read_private_key,
    read_public_key,
    sign,
    verify,
)

STATEMENT = {"outcome": "pass", "cells": [{"group": "é", "rate": 0.001}], "nothing": None}
KEY = Ed25519PrivateKey.generate()


def test_what_was_signed_is_what_is_read() -> None:
    content = sign(STATEMENT, KEY)
    assert verify(content, KEY.public_key()) == STATEMENT
    document = json.loads(content)
    assert document["key_fingerprint"] == fingerprint(KEY.public_key())
    assert sign(STATEMENT, KEY) == content  # Ed25519 has no randomness


def test_no_byte_can_be_changed() -> None:
    """Any bit of any byte, including spaces, the key in the file and the end of the signature."""
    content = sign(STATEMENT, KEY)
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with pytest.raises(InvalidAttestation):
                verify(bytes(changed), KEY.public_key())


def test_no_byte_can_be_removed_or_added() -> None:
    content = sign(STATEMENT, KEY)
    others = [content[:place] for place in range(len(content))]
    others += [content + b"\n", b" " + content, content.replace(b"\n", b"\r\n"), b"", b"[]", b"1"]
    others += [content.replace(b'"pass"', b'"fail"'), content.replace(b"0.001", b"0.0010")]
    others += [content.replace(b'"outcome"', b'"outcome": "fail",\n  "outcome"'), b"\xff" * 10]
    others += [b"[" * 100_000, content.replace(b"0.001", b"1" * 5000), b" " * (MAX_BYTES + 1)]
    for other in others:
        with pytest.raises(InvalidAttestation):
            verify(other, KEY.public_key())


def test_another_s_signature_is_refused() -> None:
    other = Ed25519PrivateKey.generate()
    with pytest.raises(InvalidAttestation, match="names another key"):
        verify(sign(STATEMENT, other), KEY.public_key())
    mixed = json.loads(sign(STATEMENT, other))
    mine = json.loads(sign(STATEMENT, KEY))
    mixed |= {name: mine[name] for name in ("public_key", "key_fingerprint")}
    with pytest.raises(InvalidAttestation, match="changed after it was signed"):
        verify((json.dumps(mixed, indent=1) + "\n").encode(), KEY.public_key())


def test_a_key_pair_is_made_once_and_privately(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    public = generate_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert fingerprint(read_public_key(tmp_path / "key.pem.pub")) == fingerprint(public)
    content = sign(STATEMENT, read_private_key(path))
    assert verify(content, public) == STATEMENT
    before = path.read_bytes()
    with pytest.raises(AttestationError, match="never overwritten"):
        generate_key(path)
    assert path.read_bytes() == before
    with pytest.raises(AttestationError, match="cannot be written"):
        generate_key(tmp_path / "none" / "key.pem")


def test_half_of_a_key_pair_is_not_left(tmp_path: Path) -> None:
    (tmp_path / "key.pem.pub").touch()
    with pytest.raises(AttestationError, match=r"key\.pem\.pub exists"):
        generate_key(tmp_path / "key.pem")
    assert [one.name for one in tmp_path.iterdir()] == ["key.pem.pub"]


def test_a_key_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AttestationError, match="No space left"):
        generate_key(tmp_path / "key.pem")
    assert not [*tmp_path.iterdir()]


def test_a_key_that_others_can_read_does_not_sign(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    generate_key(path)
    path.chmod(0o640)
    with pytest.raises(AttestationError, match="chmod 600"):
        read_private_key(path)


def test_other_keys_are_named_as_such(tmp_path: Path) -> None:
    def written(content: bytes) -> Path:
        path = tmp_path / "other.pem"
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    locked = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    other = X25519PrivateKey.generate()
    exchange = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content, words in (
        (b"not a key", "not an unencrypted private key"),
        (locked, "not an unencrypted private key"),
        (exchange, "another kind than Ed25519"),
        (b"x" * 20_000, "larger than a key"),
    ):
        with pytest.raises(AttestationError, match=words):
            read_private_key(written(content))
    with pytest.raises(AttestationError, match="not a public key"):
        read_public_key(written(exchange))
    with pytest.raises(AttestationError, match="cannot be read"):
        read_public_key(tmp_path / "none")


def statement(errors: int, searches: int = 1000, outcome: str = "undecided") -> dict[str, Any]:
    rate = {
        "errors": errors, "searches": searches, "effective": float(searches),
        "rate": errors / searches,
    }  # fmt: skip
    fine = dict(rate, errors=0, rate=0.0)
    cell = {"group": "everybody", "stratum": "unchanged", "degraded": "none", "fpir": rate,
            "fnir": fine}  # fmt: skip
    same: dict[str, Any] = dict.fromkeys(
        ("requirement", "gallery_persons", "data", "software", "model", "calibration", "policy",
         "threshold"), 1
    )  # fmt: skip
    return {**same, "outcome": outcome, "cells": [cell]}


def test_the_same_is_no_drift() -> None:
    found = compare(statement(10), statement(10))
    assert (found.worse, found.changed) == ((), ())


def test_a_rise_beyond_chance_is_worse_and_a_fall_is_not() -> None:
    assert compare(statement(10), statement(14)).worse == ()
    (line,) = compare(statement(10), statement(40)).worse
    assert line == "FPIR of everybody / unchanged / none rose from 10 of 1,000 to 40 of 1,000."
    assert compare(statement(40), statement(10)).worse == ()


def test_a_worse_outcome_and_a_missing_cell_are_worse() -> None:
    later = statement(10, outcome="fail")
    later["cells"] = []
    later["model"] = 2
    found = compare(statement(10, outcome="pass"), later)
    assert found.worse == (
        "The outcome was pass and is fail.",
        "everybody / unchanged / none is no longer measured.",
    )
    assert found.changed == ("model differs",)


def test_what_cannot_be_compared_is_said() -> None:
    broken = copy.deepcopy(statement(1))
    del broken["cells"][0]["fpir"]["effective"]
    for other in ({}, broken, {**statement(1), "outcome": "fine"}):
        with pytest.raises(InvalidAttestation, match="cannot be compared"):
            compare(other, statement(1))
