"""Verification of an audit log: that no entry was removed, changed or moved."""

import hmac
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from app.store.sql.audit_chain import HASH_BYTES, digest_after, signature_of, signer_of
from app.store.sql.audit_log import AuditEntry, AuditHead

_OF_ENTRY = {"sequence", "content", "digest"}
_OF_END = {"end", "digest", "signature", "signer"}


@dataclass(frozen=True, slots=True)
class AuditVerification:
    """The number of valid entries before the first problem, and that problem, or None."""

    entries: int
    digest: bytes  # of the last entry: kept elsewhere, it proves later that nothing was cut off
    problem: str | None = None


def verify_audit(
    parts: Iterable[AuditEntry | AuditHead],
    key: bytes | None = None,
    expected: Collection[bytes] = (),
) -> AuditVerification:
    """Check a log from its first entry to its end. With `key`, the deployment's, its end must be
    signed by it; without, only the chain is checked. Each of the `expected` digests, which were
    kept elsewhere, must be that of an entry: otherwise entries were cut off or written again."""
    missing = set(expected)
    found = _verified(parts, key, missing)
    if found.problem is not None or not missing:
        return found
    absent = ", ".join(sorted(one.hex() for one in missing))
    what = (
        f"no entry has the digest {absent}, which was expected: entries were removed from the "
        "end, or the log was rewritten, or the digest is of another log"
    )
    return replace(found, problem=what)


def _verified(
    parts: Iterable[AuditEntry | AuditHead], key: bytes | None, missing: set[bytes]
) -> AuditVerification:
    """The same, which removes from `missing` the digests that entries have."""
    sequence, digest = 0, bytes(HASH_BYTES)
    parts = iter(parts)
    for part in parts:
        if isinstance(part, AuditHead):
            what: str | None = "something follows the end of the log"
            if next(parts, None) is None:
                what = _end_problem(part, sequence, digest, key)
            return AuditVerification(sequence, digest, what)
        if part.sequence != sequence + 1:
            what = f"entry {sequence + 1} is missing: entry {part.sequence} follows {sequence}"
            return AuditVerification(sequence, digest, what)
        if part.digest != digest_after(digest, part.sequence, part.content):
            what = f"entry {part.sequence} was changed, or an entry before it"
            return AuditVerification(sequence, digest, what)
        sequence, digest = part.sequence, part.digest
        missing.discard(digest)
    return AuditVerification(sequence, digest, "the end of the log is missing")


def _end_problem(head: AuditHead, sequence: int, digest: bytes, key: bytes | None) -> str | None:
    if head.sequence != sequence:
        return f"the log ends at entry {sequence}, but {head.sequence} entries were written"
    if head.digest != digest:
        return f"the last entry, {sequence}, is not the one that was written last"
    if not sequence:
        return "it is empty: a service writes its first entry when it starts"
    if key is None:
        return None
    if head.signature is None:
        return "the end of the log is not signed"
    if head.signer != signer_of(key):
        return (
            "the end of the log is signed with another secret: use the LIKENESS_ACCESS_PEPPER or "
            "access-pepper file of the process that wrote it"
        )
    if not hmac.compare_digest(head.signature, signature_of(key, sequence, digest)):
        return "the signature of the log's end is not valid: entries may have been rewritten"
    return None


def exported(parts: Iterable[AuditEntry | AuditHead]) -> Iterator[str]:
    """A log as JSON lines: each entry, then the end of the chain."""
    for part in parts:
        if isinstance(part, AuditHead):
            signature = None if part.signature is None else part.signature.hex()
            end = {"end": part.sequence, "digest": part.digest.hex(), "signature": signature,
                   "signer": part.signer}  # fmt: skip
            yield json.dumps(end)
        else:
            yield json.dumps(
                {"sequence": part.sequence, "content": part.content, "digest": part.digest.hex()}
            )


def read_export(lines: Iterable[str]) -> Iterator[AuditEntry | AuditHead]:
    """The parts of an exported log. Raises ValueError with the number of the first
    line that is not a part."""
    for number, line in enumerate(lines, 1):
        try:
            yield _part(json.loads(line))
        except (
            ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
        ) as error:  # fmt: skip
            raise ValueError(f"line {number} is not a line of an exported audit log") from error


def _part(members: dict[str, Any]) -> AuditEntry | AuditHead:
    if members.keys() not in (_OF_ENTRY, _OF_END):
        raise ValueError("other members than an export has")
    digest = bytes.fromhex(members["digest"])
    if "end" not in members:
        content = str(members["content"])
        content.encode()  # half of a surrogate pair has no digest
        return AuditEntry(int(members["sequence"]), content, digest)
    signature = members["signature"]
    return AuditHead(
        int(members["end"]),
        digest,
        None if signature is None else bytes.fromhex(signature),
        members["signer"],
    )
