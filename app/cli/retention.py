"""`likeness retention`: whom the policies of collections would delete."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from app.cli.console import out, read_settings, require_database
from app.decision.policy import MOST_RETENTION_DAYS
from app.gallery.retention import expiry_of, inactive_since
from app.store.schema import opened_database
from app.store.sql.retention import Expiry
from app.store.store import Store

SHOWN = 20


def retention(
    collection: Annotated[
        str | None,
        typer.Option(help="Only this collection; default: all whose policy deletes persons."),
    ] = None,
    days: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_RETENTION_DAYS,
            help="Number of days, instead of the policy's retention_days.",
        ),
    ] = None,
) -> None:
    """Show how many persons would be deleted now because they were neither enrolled nor matched for
    as long as the policy says, or because they have no valid consent although the policy requires
    one. Nothing is changed: the running service deletes them."""
    settings = require_database(read_settings())
    now = datetime.now(UTC)
    with opened_database(settings.resolved_database_url) as engine:
        store = Store(engine)
        records = (
            [store.collections.get(collection)]
            if collection is not None
            else list(store.collections.every())
        )
        deletes = False
        for record in records:
            rule = expiry_of(record, now)
            if days is not None:
                rule = replace(rule, inactive_since=inactive_since(days, now))
            if rule:
                deletes = True
                _show(store, record.name, rule)
            elif collection is not None:
                text = f"{record.name}: the policy has no retention_days or consent_required"
                out.print(text, highlight=False, soft_wrap=True)
        if not deletes and collection is None:
            out.print(
                "No collection has a policy with retention_days or consent_required: nobody would "
                "be deleted.", soft_wrap=True,
            )  # fmt: skip


def _show(store: Store, name: str, rule: Expiry) -> None:
    """How many persons each part of a rule concerns, and some of them."""
    since = rule.inactive_since
    if since is not None:
        shown = f"persons neither enrolled nor matched since {since:%Y-%m-%d %H:%M} UTC"
        _list(store, name, shown, Expiry(inactive_since=since))
    if rule.consent_at is not None:
        _list(store, name, "persons without a valid consent", Expiry(consent_at=rule.consent_at))


def _list(store: Store, name: str, shown: str, rule: Expiry) -> None:
    count = store.retention.count_expired(name, rule)
    out.print(f"{name}: {count} {shown}", highlight=False, markup=False, soft_wrap=True)
    for person_id in store.retention.expired(name, rule, SHOWN):
        out.print(f"  {person_id}", highlight=False, markup=False, soft_wrap=True)
    if count > SHOWN:
        out.print(f"  and {count - SHOWN} more", highlight=False)
