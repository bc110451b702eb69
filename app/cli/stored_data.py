"""What doctor says of ids and metadata that an earlier version stored, and how it changes them."""

import json
import os
import shlex
from pathlib import Path

from app.errors import BackupError
from app.gallery.ports import ClashingIds, InvalidRow, TemplateStore

SHOWN = 20

# A line, and whether all is well with what it speaks of.
Finding = tuple[str, bool]


def stored_data(store: TemplateStore, *, repair: bool) -> list[Finding]:
    """Metadata that is not returned as it is stored, and ids that look the same; and whether
    filters find by the metadata that there is, which is repaired if asked."""
    findings: list[Finding] = []
    amiss = [f"{_where(one)}: {one.problem}" for one in store.invalid_rows()]
    findings += [(line, False) for line in amiss[:SHOWN]]
    if len(amiss) > SHOWN:
        findings.append((f"and {len(amiss) - SHOWN} more", False))
    if amiss:
        advice = "likeness doctor --fix-metadata FILE stores what is shown instead"
        findings.append((f"{len(amiss)} rows hold what no answer can carry; {advice}", False))
    if wrong := store.wrong_terms(repair=repair):
        said = "it was built anew" if repair else "likeness doctor --repair builds it anew"
        findings.append((f"the index of metadata is wrong about {wrong} persons; {said}", repair))
    findings += [(_clash(one), False) for one in store.clashing_ids()]
    return findings


def fix(store: TemplateStore, path: Path) -> list[str]:
    """Store what is shown where it differs; the file gets what was stored, and is its owner's
    alone. Raises BackupError where it exists or cannot be written."""
    try:
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "w", encoding="utf-8") as file:

            def keep(one: InvalidRow) -> None:
                members = {"kind": one.kind, "collection": one.collection, "id": one.name}
                print(json.dumps({**members, "json": one.original}), file=file)
                file.flush()
                os.fsync(file.fileno())

            fixed = [store.store_corrected(one, keep) for one in store.invalid_rows()]
    except OSError as error:
        raise BackupError(
            f"{path} cannot be written: {error.strerror}. Name another new file."
        ) from error
    return [f"{sum(fixed)} rows were changed; {path} has what they held. Delete it when done."]


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
    """For bash and zsh, every character that is not ASCII by its number: so two that look the same
    can be told apart, and are pasted as they are."""
    if text.isascii():
        return shlex.quote(text)
    escaped = "".join(
        c if c.isascii() and c not in "\\'" else f"\\U{ord(c):08x}" if ord(c) > 127 else f"\\{c}"
        for c in text
    )
    return f"$'{escaped}'"
