"""`likeness audit`: who changed what."""

import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import select

from app.access.keys import audit_key
from app.cli.console import err, out, read_settings, require_database
from app.cli.output import write_file
from app.errors import PersonNotFound
from app.settings import MOST
from app.store.audit_verification import AuditVerification, exported, read_export, verify_audit
from app.store.schema import opened_database
from app.store.sql.audit_chain import HASH_BYTES
from app.store.sql.audit_log import AuditEntry, AuditFilter
from app.store.sql.lookups import MAX_KEYS, is_live
from app.store.sql.tables import persons
from app.store.store import Store

# Characters that are read as one line of an exported log; an entry has fewer.
MOST_OF_LINE = 4 * 1024 * 1024

audit_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="The audit log: show who changed what, verify that it was not altered, export it.",
)


@contextmanager
def _opened() -> Iterator[Store]:
    settings = require_database(read_settings())
    with opened_database(settings.resolved_database_url) as engine:
        yield Store(engine)


def _moment(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(
            f"'{value}' is not a time such as 2026-11-26 or 2026-11-26T14:00+01:00."
        ) from error


@audit_app.command()
def show(
    *,
    last: Annotated[
        int, typer.Option(min=1, max=MOST, help="Number of entries to show, the newest ones.")
    ] = 50,
    actor: Annotated[
        str | None,
        typer.Option(
            help=(
                "Only entries of this actor: key:ID, token:SUBJECT, import:ID, user:NAME, "
                "service, caller (no key was needed), anonymous (no valid key, where one was "
                "needed), several (many actors whose refused calls are counted together)."
            )
        ),
    ] = None,
    action: Annotated[str | None, typer.Option(help="Only this action: person.deleted, …")] = None,
    collection: Annotated[str | None, typer.Option(help="Only changes in this collection.")] = None,
    person: Annotated[
        str | None,
        typer.Option(help="Only changes of the person with this id; needs --collection."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only entries since this day or time: 2026-11-26 (UTC).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON Lines.")] = False,
) -> None:
    """Show the last entries."""
    after = _moment(since)
    with _opened() as store:
        number = None if person is None else _number(store, collection, person)
        wanted = AuditFilter(actor, action, collection, number, after)
        entries = store.audit.latest(last, wanted)
        names = _names(store, entries)
    if as_json:
        for one in entries:
            typer.echo(json.dumps({"sequence": one.sequence, **one.members}))
        return
    for one in entries:
        typer.echo(f"{one.sequence}  {_line(one, names)}")


@audit_app.command()
def verify(
    file: Annotated[
        Path | None,
        typer.Option(
            help="Verify this exported log instead of the database's.", exists=True, dir_okay=False
        ),
    ] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Fail unless an entry has this digest, which an earlier verification "
                "printed; repeatable."
            )
        ),
    ] = None,
) -> None:
    """Check that no entry was removed, changed or moved. Exit status 1 if one was."""
    expected = [_digest(one) for one in expect or ()]
    key = audit_key(read_settings())
    if file is None:
        with _opened() as store:
            found = verify_audit(store.audit.everything(), key, expected)
            wrong = store.audit.columns_that_differ() if found.problem is None else None
    else:
        found, wrong = _verify_file(file, key, expected), None
    if found.problem is None and wrong is None:
        out.print(f"{found.entries} entries, none missing or changed", highlight=False)
        out.print(f"digest of the last: {found.digest.hex()}", highlight=False, soft_wrap=True)
        return
    problem = found.problem or f"the columns of entry {wrong} were changed"
    err.print(
        f"The audit log is incomplete or was changed: {problem}.", highlight=False, markup=False
    )
    raise typer.Exit(1)


@audit_app.command()
def export(
    file: Annotated[
        Path | None, typer.Argument(help="File to write; default: standard output.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a file that exists.")] = False,
) -> None:
    """Write the whole log as JSON Lines, which `audit verify --file` checks later. The file is
    readable by its owner alone."""
    with _opened() as store:
        lines = (f"{line}\n" for line in exported(store.audit.everything()))
        if file is not None:
            write_file(file, (line.encode() for line in lines), replace=force)
            return
        sys.stdout.writelines(lines)


def _digest(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != HASH_BYTES:
        raise typer.BadParameter(
            f"'{text}' is not a digest: give the {2 * HASH_BYTES} hexadecimal digits that "
            "`likeness audit verify` printed."
        )
    return found


def _verify_file(file: Path, key: bytes, expected: Collection[bytes]) -> AuditVerification:
    # Bytes that are no text become characters that no digest has.
    with file.open(encoding="utf-8", errors="replace") as opened:
        lines = iter(lambda: opened.readline(MOST_OF_LINE), "")
        try:
            return verify_audit(read_export(lines), key, expected)
        except ValueError as error:
            return AuditVerification(0, b"", str(error))


def _number(store: Store, collection: str | None, person_id: str) -> int:
    """A person's number in the database. Raises PersonNotFound."""
    if collection is None:
        raise typer.BadParameter("--person needs --collection.")
    try:
        return store.persons.get(collection, person_id).key
    except PersonNotFound as error:
        raise PersonNotFound(
            f"{error.detail} Entries of a deleted person cannot be found by their id."
        ) from error


def _names(store: Store, entries: list[AuditEntry]) -> dict[int, str]:
    """What each entry about a person calls them, by the entry's number. Before the last restore of
    a backup a person's number may have been another person's."""
    begins = store.audit.last_restore()
    about = {one.sequence: one.members["person"] for one in entries if one.members["person"]}
    numbers = sorted({number for sequence, number in about.items() if sequence > begins})
    ids: dict[int, str] = {}
    with store.database.reading() as connection:
        for start in range(0, len(numbers), MAX_KEYS):
            some = persons.c.id.in_(numbers[start : start + MAX_KEYS])
            query = select(persons.c.id, persons.c.person_id).where(some, is_live(persons))
            ids |= {row.id: row.person_id for row in connection.execute(query)}
    return {
        sequence: ids.get(number, "(deleted)") if sequence > begins else "(before a restore)"
        for sequence, number in about.items()
    }


def _line(entry: AuditEntry, names: dict[int, str]) -> str:
    """An entry as a line of text; the time is UTC."""
    members = entry.members
    number = members["person"]
    person = None if number is None else f"{names[entry.sequence]} #{number}"
    details = ", ".join(f"{name} {_shown(name, it)}" for name, it in members["details"].items())
    client = members.get("client")
    parts = (
        members["at"][:19].replace("T", " "), members["actor"], client and f"from {client}",
        members["action"], members["collection"], person, details,
    )  # fmt: skip
    return "  ".join(part for part in parts if part)


def _shown(name: str, value: Any) -> str:
    """A detail of an entry: a text as it is, anything else as JSON."""
    if name == "collections" and value is None:
        return "all"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
