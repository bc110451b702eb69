"""`likeness keys`: access keys of the API."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.table import Table

from app.access.keys import (
    MAX_COUNT,
    MAX_RATE,
    MIN_RATE,
    WHOLE_SERVICE,
    AccessKey,
    KeyLimits,
    NewKey,
    Scope,
    audit_key,
    read_pepper,
)
from app.access.registry import LEASE_S
from app.access.store import AccessKeyStore
from app.cli import encryption
from app.cli.console import announce_new_database, err, out, read_settings, require_database
from app.store.database import Database
from app.store.identifiers import problem_of_name
from app.store.schema import opened_database

DURATION = re.compile(r"([0-9]+)([mhd])")
MOST_UNITS = 99_999
UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
HIDDEN_SINCE = "`likeness keys {old}` is now `likeness encryption {old}`."

keys_app = typer.Typer(
    help="Access keys of the API: create, list, limit, rotate, revoke.",
    no_args_is_help=True,
    add_completion=False,
)


def _name(value: str) -> str:
    if problem := problem_of_name(value):
        raise typer.BadParameter(f"The name of a key {problem}.")
    return value


def _collections(values: list[str]) -> list[str]:
    for value in values:
        if problem := problem_of_name(value):
            raise typer.BadParameter(f"The name of a collection {problem}.")
    return values


def _scopes(given: list[str], limit: list[str] | None) -> list[Scope]:
    """`all` means every scope that the key can have."""
    unknown = [one for one in given if one != "all" and one not in [*Scope]]
    if unknown:
        raise typer.BadParameter(f"'{unknown[0]}' is not a scope: {', '.join(Scope)}, or all.")
    scopes = [Scope(one) for one in given if one != "all"]
    if limit and (wrong := sorted(WHOLE_SERVICE.intersection(scopes))):
        raise typer.BadParameter(
            f"The scope '{wrong[0]}' concerns the whole service; a key that is limited to "
            "collections cannot have it."
        )
    if "all" not in given:
        return scopes
    return [one for one in Scope if not limit or one not in WHOLE_SERVICE]


def _lifetime(value: str) -> timedelta:
    """A duration that is not zero."""
    found = duration(value)
    if not found:
        raise typer.BadParameter(f"'{value}': such a key would have expired already.")
    return found


def duration(value: str) -> timedelta:
    """30m, 12h or 90d. Raises typer.BadParameter."""
    found = DURATION.fullmatch(value)
    if found is None:
        raise typer.BadParameter(f"'{value}' is not a duration such as 30m, 12h or 90d.")
    # A few thousand digits are more than Python reads.
    if len(digits := found[1].lstrip("0")) > len(str(MOST_UNITS)):
        raise typer.BadParameter(f"'{value}' is too long: {MOST_UNITS}{found[2]} at most.")
    return int(digits or 0) * UNITS[found[2]]


RequestRate = Annotated[
    float | None, typer.Option(min=MIN_RATE, max=MAX_RATE, help="Requests a second on average.")
]
PhotoRate = Annotated[
    float | None, typer.Option(min=MIN_RATE, max=MAX_RATE, help="Photos a second on average.")
]
Concurrent = Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="Requests at a time.")]
PhotosADay = Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="Photos a day (UTC).")]
NameOrId = Annotated[str, typer.Argument(help="Name or id of a key.")]


@keys_app.command()
def create(
    *,
    name: Annotated[
        str, typer.Option(callback=_name, help="Name of the program or person that uses the key.")
    ],
    scope: Annotated[
        list[str], typer.Option(help=f"{', '.join(Scope)}, or all; repeat it for several.")
    ],
    collection: Annotated[
        list[str] | None,
        typer.Option(help="Collection that the key is limited to; repeatable. Default: all."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Time until it expires: 30m, 12h, 90d.")
    ] = None,
    requests_per_second: RequestRate = None,
    photos_per_second: PhotoRate = None,
    concurrent_requests: Concurrent = None,
    photos_per_day: PhotosADay = None,
) -> None:
    """Create an access key and print its token, which is stored nowhere. As soon as there is a key,
    every call needs one."""
    limit = _collections(collection or []) or None
    ends = None if expires is None else datetime.now(UTC) + _lifetime(expires)
    limits = KeyLimits(requests_per_second, photos_per_second, concurrent_requests, photos_per_day)
    with _opened(new=True) as store:
        store.create(NewKey(name, _scopes(scope, limit), limit, ends, limits), _print_new)


@keys_app.command("list")
def list_keys(
    as_json: Annotated[
        bool, typer.Option("--json", help="As JSON Lines, as GET /v1/keys has them.")
    ] = False,
) -> None:
    """List the access keys, also those that were revoked or have expired."""
    with _opened() as store:
        _, found = store.all()
    if as_json:
        from app.api.endpoints.access_keys import KeyInfo  # noqa: PLC0415 (takes half a second)

        for one in found.values():
            typer.echo(KeyInfo.of(one.key).model_dump_json())
        return
    now = datetime.now(UTC)
    table = Table()
    for title in ("id", "name", "scopes", "collections", "limits", "state", "last used"):
        # Ids and names are arguments of other commands: never cut off, in however few columns.
        table.add_column(title, no_wrap=title == "id", overflow="fold")
    for one in found.values():
        key = one.key
        limit = "all" if key.collections is None else ", ".join(sorted(key.collections))
        used = "never" if key.last_used_at is None else f"{key.last_used_at:%Y-%m-%d %H}:00"
        table.add_row(
            key.key_id,
            key.name,
            ", ".join(sorted(key.scopes)),
            limit,
            _limits(key),
            _state(key, now),
            used,
        )
    out.print(table)


@keys_app.command()
def rotate(
    key: Annotated[
        str | None,
        typer.Argument(
            help="Name or id of a key. Required if there are access keys. If there are none, the "
            "command without KEY does the same as likeness encryption rotate, as it did before "
            "there were access keys.",
            metavar="KEY",
            show_default=False,
        ),
    ] = None,
    overlap: Annotated[
        str, typer.Option(help="How long the old token stays usable: 30m, 12h, 7d.")
    ] = "24h",
) -> None:
    """Create a key with the name, scopes, collections and limits of an existing one, and print
    its token. The old token stays usable for some time."""
    if key is None:
        _rotate_encryption()
        return
    with _opened() as store:
        store.rotate(key, duration(overlap), _print_new)
        err.print(f"The old token is accepted for {overlap} more.", highlight=False)


def _rotate_encryption() -> None:
    """What `keys rotate` did before there were access keys, if there are none. Raises
    typer.BadParameter if there are: the name of one may have been forgotten."""
    with _opened() as store:
        _, found = store.all()
    if found:
        raise typer.BadParameter(
            "which access key? `likeness keys rotate NAME` rotates one, `likeness keys list` shows "
            "them. The keys of embeddings at rest are rotated by `likeness encryption rotate`. "
            "Nothing was changed.",
            param_hint="KEY",
        )
    _deprecated("rotate")
    encryption.rotate()


@keys_app.command()
def limit(
    key: NameOrId,
    requests_per_second: RequestRate = None,
    photos_per_second: PhotoRate = None,
    concurrent_requests: Concurrent = None,
    photos_per_day: PhotosADay = None,
) -> None:
    """Replace the limits of all keys of a name, given by the name or by the id of one of them. A
    limit that is not given is taken away."""
    limits = KeyLimits(requests_per_second, photos_per_second, concurrent_requests, photos_per_day)
    with _opened() as store:
        for one in store.limit(key, limits):
            out.print(f"{one.name} ({one.key_id}): {_limits(one)}", markup=False, highlight=False)


@keys_app.command()
def revoke(key: NameOrId) -> None:
    """Revoke the key of an id, or all keys of a name. Returns when no process accepts them."""
    with _opened() as store:
        revoked = store.revoke(key)
        with err.status("waiting until every process applies it"):
            time.sleep(LEASE_S)
        for one in revoked:
            out.print(f"revoked {one.name} ({one.key_id})", highlight=False)
        _, found = store.all()
    now = datetime.now(UTC)
    if not any(stored.key.usable(now) for stored in found.values()):
        err.print(
            "No usable access key is left, and calls still need one. "
            "`likeness keys create --name NAME --scope all` makes another.",
            highlight=False,
        )


@keys_app.command(hidden=True)
def generate(
    key_id: Annotated[str | None, typer.Option("--id", help="Id of the key.")] = None,
) -> None:
    """Deprecated; use `likeness encryption generate`."""
    _deprecated("generate")
    encryption.generate(key_id)


@keys_app.command(hidden=True)
def status() -> None:
    """Deprecated; use `likeness encryption status`."""
    _deprecated("status")
    encryption.status()


def _deprecated(old: str) -> None:
    err.print(HIDDEN_SINCE.format(old=old), markup=False, highlight=False)


@contextmanager
def _opened(*, new: bool = False) -> Iterator[AccessKeyStore]:
    """The keys of the database that the settings name; if `new`, it is made where it is missing,
    because the first key may be created before the first start. Raises DatabaseError."""
    settings = read_settings()
    if new:
        announce_new_database(settings)
    else:
        require_database(settings)
    pepper = read_pepper(settings)
    with opened_database(settings.resolved_database_url) as engine:
        yield AccessKeyStore(Database(engine, audit_key=audit_key(settings)), pepper)


def _print_new(key: AccessKey, token: str) -> None:
    """The token alone on standard output, so that a script can read it."""
    limit = "every collection" if key.collections is None else ", ".join(sorted(key.collections))
    ends = "" if key.expires_at is None else f", until {key.expires_at:%Y-%m-%d %H:%M} UTC"
    err.print(
        f"Access key {key.name} ({key.key_id}): {', '.join(sorted(key.scopes))} in {limit}{ends}. "
        "The token is shown once:",
        markup=False,
        highlight=False,
    )
    typer.echo(token)


def _limits(key: AccessKey) -> str:
    units = {
        "requests_per_second": "requests/s",
        "photos_per_second": "photos/s",
        "concurrent_requests": "requests at a time",
        "photos_per_day": "photos a day",
    }
    members = key.limits.members()
    return ", ".join(f"{value:,.15g} {units[name]}" for name, value in members.items()) or "none"


def _state(key: AccessKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if not key.usable(now):
        return f"expired {key.expires_at:%Y-%m-%d}"
    return "usable" if key.expires_at is None else f"until {key.expires_at:%Y-%m-%d}"
