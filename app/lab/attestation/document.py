"""The signed file: JSON that a person can read, in exactly one spelling.

The signature (Ed25519, RFC 8032) is over the statement's bytes as they stand in the file, after a
line that names the format, so that it can be used for nothing else. A file whose bytes differ from
the one spelling of its content is refused, so that no byte can be changed unnoticed.
"""

import base64
import json
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.lab.attestation.keys import fingerprint, public_pem
from app.lab.errors import InvalidAttestation
from app.types import JsonObject

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
