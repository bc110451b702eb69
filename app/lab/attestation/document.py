"""The signed file of an attestation (readable JSON in a canonical form), the Ed25519 keys that sign
it, as PEM files, and what differs between two attestations.

The signature (Ed25519, RFC 8032) is over the statement's bytes as they stand in the file, after a
line that names the format, so that it can be used for nothing else. A file whose bytes differ from
the canonical form of its content is refused, so that no byte can be changed unnoticed."""

import base64
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from app.errors import LikenessError
from app.types import JsonObject


class AttestationError(LikenessError):
    """An attestation cannot be made; `detail` says why and what to do."""

    code, status, title = "attestation_error", 422, "The attestation cannot be made"


class InvalidAttestation(LikenessError):
    """A file that is no attestation signed by the key that was named."""

    code, status, title = "invalid_attestation", 422, "The attestation is not valid"


MAX_KEY_BYTES = 16 * 1024


def generate_key(path: Path) -> Ed25519PublicKey:
    """Write a new private key, readable by its owner alone, and its public key to `<path>.pub`.

    Raises AttestationError where either file exists or cannot be written; then it leaves neither.
    """
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write_new(path, secret, 0o600)
    try:
        _write_new(path.with_name(f"{path.name}.pub"), public_pem(public).encode(), 0o644)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return public


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    except FileExistsError as error:
        raise AttestationError(
            f"{path} exists, and a key is never overwritten. Give another path."
        ) from error
    except OSError as error:
        raise AttestationError(
            f"{path} cannot be written: {error.strerror}. Give another path."
        ) from error
    try:
        with os.fdopen(file, "wb") as opened:
            os.fchmod(file, mode)
            opened.write(content)
            opened.flush()
            os.fsync(file)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise AttestationError(
            f"{path} cannot be written: {error.strerror}. Give another path."
        ) from error


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs. Raises AttestationError, among other reasons if others than its owner can
    read it."""
    content, mode = _read(path)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AttestationError(
            f"{path} is not an unencrypted private key in PEM form. Make one with likeness attest "
            "keygen."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise AttestationError(
            f"{path} is a private key of another kind than Ed25519. Make one with likeness attest "
            "keygen."
        )
    if mode & 0o077:
        raise AttestationError(
            f"{path} can be read by others than its owner (mode {mode:04o}), who could sign with "
            f"it. Run chmod 600 {path}, and make a new key if others had access."
        )
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """The key that verifies. Raises AttestationError, also for a private key: verifying
    must not need one."""
    content, _ = _read(path)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AttestationError(
            f"{path} is not a public key in PEM form. It is the file that ends in .pub beside the "
            "private key."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise AttestationError(f"{path} is a public key of another kind than Ed25519.")
    return key


def _read(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise AttestationError(f"The key {path} cannot be read: {error.strerror}.") from error
    if len(content) > MAX_KEY_BYTES:
        raise AttestationError(f"{path} is larger than a key can be ({MAX_KEY_BYTES:,} bytes).")
    return content, mode


def public_pem(key: Ed25519PublicKey) -> str:
    """The public key in PEM form (RFC 8410)."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the public key's DER form, to be compared over another channel."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"SHA256:{hashlib.sha256(der).hexdigest()}"


FORMAT = "likeness-attestation/1"
MEMBERS = ["format", "statement", "public_key", "key_fingerprint", "signature"]
MAX_BYTES = 4 * 1024 * 1024


def sign(statement: JsonObject, key: Ed25519PrivateKey) -> bytes:
    """The file. The statement holds JSON values only, its floats finite."""
    public = key.public_key()
    signature = key.sign(_signed_bytes(statement))
    return _spelled(
        {
            "format": FORMAT,
            "statement": statement,
            "public_key": public_pem(public),
            "key_fingerprint": fingerprint(public),
            "signature": base64.b64encode(signature).decode("ascii"),
        }
    )


def verify(content: bytes, key: Ed25519PublicKey) -> dict[str, Any]:
    """The statement of a file that `key` has signed. Raises InvalidAttestation."""
    document = _parsed(content)
    if document["key_fingerprint"] != fingerprint(key) or document["public_key"] != public_pem(key):
        raise InvalidAttestation(
            f"It names another key than the one given, which is {fingerprint(key)}. Either the key "
            "is the wrong one, or someone else has signed the file."
        )
    statement = document["statement"]
    try:
        signature = base64.b64decode(document["signature"], validate=True)
        if base64.b64encode(signature).decode("ascii") != document["signature"]:
            raise ValueError("the last character has bits that no byte has")
        key.verify(signature, _signed_bytes(statement))
    except (InvalidSignature, ValueError, TypeError) as error:
        raise InvalidAttestation(
            "The signature is not that of this statement: the file was changed after it was signed."
        ) from error
    if not isinstance(statement, dict):
        raise InvalidAttestation("Its statement is not an object.")
    return statement


def _parsed(content: bytes) -> dict[str, Any]:
    if len(content) > MAX_BYTES:
        raise InvalidAttestation(
            f"It has more than {MAX_BYTES:,} bytes, so it is not an attestation."
        )
    try:
        document = json.loads(content.decode("ascii"), parse_constant=_refuse)
        whole = (
            isinstance(document, dict)
            and list(document) == MEMBERS
            and document["format"] == FORMAT
            and _spelled(document) == content
        )
    except (ValueError, RecursionError) as error:
        raise InvalidAttestation(_changed()) from error
    if not whole:
        raise InvalidAttestation(_changed())
    found: dict[str, Any] = document
    return found


def _changed() -> str:
    return f"It is not a file of the format {FORMAT}, or it was cut short or changed."


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _spelled(value: object) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode("ascii")


def _signed_bytes(statement: object) -> bytes:
    return f"{FORMAT}\n".encode() + _spelled(statement)


# Of all comparisons together (Bonferroni), one-sided: has a rate risen?
SIGNIFICANCE = 0.05
_OUTCOMES = ("pass", "undecided", "fail")
StatementMembers = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drift:
    """What changed: `worse` is a reason to look before continuing, `changed` explains it."""

    worse: tuple[str, ...]
    changed: tuple[str, ...]


def compare(earlier: StatementMembers, later: StatementMembers) -> Drift:
    """A rate is worse where Fisher's exact test (one-sided) says that it rose; so is an outcome
    that was better, and a cell that is no longer measured. Raises InvalidAttestation."""
    try:
        return Drift(tuple(_worse(earlier, later)), tuple(_differing(earlier, later)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidAttestation(
            f"The two attestations cannot be compared: {type(error).__name__}: {error}."
        ) from error


def _worse(earlier: StatementMembers, later: StatementMembers) -> Iterator[str]:
    if _OUTCOMES.index(later["outcome"]) > _OUTCOMES.index(earlier["outcome"]):
        yield f"The outcome was {earlier['outcome']} and is {later['outcome']}."
    before, now = _cells(earlier), _cells(later)
    for name in before:
        if name not in now:
            yield f"{' / '.join(name)} is no longer measured."
    pairs = [
        (name, rate, before[name][rate], now[name][rate])
        for name in now
        if name in before
        for rate in ("fpir", "fnir")
    ]
    for name, rate, old, new in pairs:
        if _rise(old, new) < SIGNIFICANCE / len(pairs):
            yield (
                f"{rate.upper()} of {' / '.join(name)} rose from {_share(old)} to {_share(new)}."
            )


def _cells(statement: StatementMembers) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    return {
        (str(row["group"]), str(row["stratum"]), str(row["degraded"])): row
        for row in statement["cells"]
    }


def _rise(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """The chance of such a rise if nothing had changed; 1 where there is nothing to compare."""
    from scipy.stats import fisher_exact  # noqa: PLC0415 - takes a second, and only this needs it

    table = [_wrong_and_right(new), _wrong_and_right(old)]
    if min(sum(row) for row in table) <= 0:
        return 1.0
    return float(fisher_exact(table, alternative="greater").pvalue)


def _wrong_and_right(row: Mapping[str, Any]) -> tuple[int, int]:
    trials = round(float(row["effective"]))
    wrong = round(float(row["rate"] or 0.0) * trials)
    return wrong, trials - wrong


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['errors']:,} of {row['searches']:,}"


def _differing(earlier: StatementMembers, later: StatementMembers) -> Iterator[str]:
    for name in ("requirement", "gallery_persons", "data", "software", "model", "calibration",
                 "policy", "threshold"):  # fmt: skip
        if earlier[name] != later[name]:
            yield f"{name} differs"
