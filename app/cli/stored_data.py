"""The checks of `doctor` for ids and metadata that an earlier version stored, and their repair."""

import json
import os
import shlex
from pathlib import Path

from app.cli.output import writing
from app.store.records import ClashingIds, InvalidRow
from app.store.sql.integrity import IntegrityStore

SHOWN = 20

# A line of the report, and whether what it reports is fine.
Finding = tuple[str, bool]


def stored_data(integrity: IntegrityStore, *, repair: bool) -> list[Finding]:
    """Findings about metadata that is shown corrected, about ids that look the same, and about the
    index of metadata, which is repaired if asked."""
    findings: list[Finding] = []
    invalid = [f"{_where(one)}: {one.problem}" for one in integrity.invalid_rows()]
    findings += [(line, False) for line in invalid[:SHOWN]]
    if len(invalid) > SHOWN:
        findings.append((f"and {len(invalid) - SHOWN} more", False))
    if invalid:
        advice = "likeness doctor --fix-metadata FILE stores the corrected values"
        findings.append(
            (f"{len(invalid)} rows have metadata that is shown corrected; {advice}", False)
        )
    if wrong := integrity.wrong_terms(repair=repair):
        said = "it was built again" if repair else "likeness doctor --repair builds it again"
        findings.append((f"the index of metadata is wrong about {wrong} persons; {said}", repair))
    findings += [(_clash(one), False) for one in integrity.clashing_ids()]
    return findings


def fix(integrity: IntegrityStore, path: Path) -> list[str]:
    """Store corrected metadata, and write the old metadata to a new file that only its owner can
    read. Raises OutputError if the file exists or cannot be written, and StoreFull."""
    with writing(path):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "w", encoding="utf-8") as file:

            def keep(one: InvalidRow) -> None:
                members = {"kind": one.kind, "collection": one.collection, "id": one.name}
                print(json.dumps({**members, "json": one.original}), file=file)
                file.flush()
                os.fsync(file.fileno())

            fixed = [integrity.store_corrected(one, keep) for one in integrity.invalid_rows()]
    return [f"{sum(fixed)} rows were changed; {path} has their old metadata. Delete it when done."]


def _where(one: InvalidRow) -> str:
    if one.kind == "collection":
        return f"collection {one.collection}"
    return f"{one.kind} {one.name} in {one.collection}"


def _clash(one: ClashingIds) -> str:
    names = f"{_quoted(one.person_id)} {_quoted(one.other_id)}"
    command = f"likeness hygiene {shlex.quote(one.collection)}"
    return (
        f"{one.collection}: the ids {_quoted(one.person_id)} and {_quoted(one.other_id)} look the "
        f"same. If they are one person: {command} --merge {names}; if they are two: {command} "
        f"--rename {_quoted(one.person_id)} NEW_ID"
    )


def _quoted(text: str) -> str:
    """Quoted for bash and zsh, with non-ASCII characters as numbers, so that ids which look the
    same can be distinguished and pasted."""
    if text.isascii():
        return shlex.quote(text)
    escaped = "".join(
        c if c.isascii() and c not in "\\'" else f"\\U{ord(c):08x}" if ord(c) > 127 else f"\\{c}"
        for c in text
    )
    return f"$'{escaped}'"
