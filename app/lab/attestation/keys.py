"""Ed25519 keys that sign attestations, as PEM files."""

import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from app.lab.errors import AttestationError

MAX_KEY_BYTES = 16 * 1024


def generate_key(path: Path) -> Ed25519PublicKey:
    """Write a new private key, readable by its owner alone, and its public key to `<path>.pub`.

    Raises AttestationError where either file exists or cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write_new(path, secret, 0o600)
    _write_new(path.with_name(f"{path.name}.pub"), public_pem(public).encode(), 0o644)
    return public


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    except FileExistsError as error:
        raise AttestationError(
            f"{path} exists, and a key is never overwritten. Name another file."
        ) from error
    except OSError as error:
        raise AttestationError(
            f"{path} cannot be written: {error.strerror}. Name another place."
        ) from error
    with os.fdopen(file, "wb") as opened:
        os.fchmod(file, mode)
        opened.write(content)
        opened.flush()
        os.fsync(file)


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs. Raises AttestationError, also where others than its owner can read it."""
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
