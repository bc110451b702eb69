"""The chain of the audit log: the digest of each entry, and the signature of the last one."""

import hashlib
import hmac

HASH_BYTES = 32


def digest_after(before: bytes, sequence: int, content: str) -> bytes:
    """The digest of an entry: of the one before it, its number and its content."""
    found = hashlib.blake2b(before, digest_size=HASH_BYTES, person=b"likeness-audit")
    found.update(sequence.to_bytes(8, "big"))
    found.update(content.encode())
    return found.digest()


def signature_of(key: bytes, sequence: int, digest: bytes) -> bytes:
    """The signature of the end of a chain (HMAC-SHA-256)."""
    return hmac.digest(key, b"likeness audit head" + sequence.to_bytes(8, "big") + digest, "sha256")


def signer_of(key: bytes) -> str:
    """Identifies a key without revealing it; may be stored."""
    return hashlib.blake2b(b"likeness audit key", key=key, digest_size=8).hexdigest()
