"""The pepper: a secret of the deployment, without which stored digests of tokens are worthless."""

import base64
import binascii
import hashlib
import secrets
from pathlib import Path

from app.disk import exclusive, private_folder, write_whole
from app.errors import AccessKeyError
from app.settings import Settings

PEPPER_BYTES = 32
FILE = "access-pepper"


def read_pepper(settings: Settings) -> bytes:
    """LIKENESS_ACCESS_PEPPER, or the file in the data folder, which is made if it is missing.

    Raises AccessKeyError.
    """
    if settings.access_pepper is not None:
        return _decoded(settings.access_pepper.get_secret_value(), "LIKENESS_ACCESS_PEPPER")
    path = settings.data_dir / FILE
    try:
        if not path.exists():
            _make(path)
        return _decoded(path.read_text(encoding="ascii"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise AccessKeyError(f"{path} cannot be read or written: {error}.") from error


def audit_key(settings: Settings) -> bytes:
    """The key that signs the end of the audit log, derived from the pepper. Raises
    AccessKeyError."""
    pepper = read_pepper(settings)
    return hashlib.blake2b(b"audit log", key=pepper, digest_size=32, person=b"likeness").digest()


def fingerprint(pepper: bytes) -> str:
    """Distinguishes one pepper from another; safe to store."""
    return hashlib.blake2b(b"likeness access pepper", key=pepper, digest_size=8).hexdigest()


def _make(path: Path) -> None:
    private_folder(path.parent)
    with exclusive(path.with_name(f"{path.name}.lock")):
        if not path.exists():  # another process may have made it meanwhile
            write_whole(path, [base64.b64encode(secrets.token_bytes(PEPPER_BYTES))])


def _decoded(text: str, where: str) -> bytes:
    try:
        pepper = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        pepper = b""
    if len(pepper) != PEPPER_BYTES:
        raise AccessKeyError(
            f"{where} does not hold {PEPPER_BYTES} bytes in base64. Make such a value with "
            "`openssl rand -base64 32`, or restore the value that the keys were created with."
        )
    return pepper
