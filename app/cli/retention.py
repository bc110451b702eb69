"""`likeness retention`: whom the policies of collections would erase by age."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from app.cli.console import clear_errors, out, read_settings
from app.cli.database import require_database
from app.gallery.retention import Retention
from app.store.backends import create_engine
from app.store.schema import migrate
from app.store.store import Store

SHOWN = 20


def retention(
    collection: Annotated[
        str | None, typer.Option(help="Only this collection; default: all with such a policy.")
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, help="Instead of the policy's retention_days.")
    ] = None,
) -> None:
    """Show how many persons would be erased now because they were neither enrolled nor matched for
    as long as the policy says. Nothing is changed: the running service erases them."""
    settings = require_database(read_settings())
    now = datetime.now(UTC)
    with clear_errors():
        engine = create_engine(settings.resolved_database_url)
        migrate(engine)
        store = Store(engine)
        try:
            records = (
                [store.collections.get(collection)]
                if collection is not None
                else list(store.collections.every())
            )
            for record in records:
                given = record if days is None else replace(record, policy={"retention_days": days})
                found = Retention.of(given, now)
                if found is not None:
                    _show(store, found)
                elif collection is not None:
                    out.print(f"{record.name}: the policy has no retention_days", highlight=False)
        finally:
            store.close()


def _show(store: Store, found: Retention) -> None:
    name = found.collection.name
    count = store.persons.count_inactive(name, found.before)
    since = f"{found.before:%Y-%m-%d %H:%M} UTC"
    out.print(f"{name}: {count} persons neither enrolled nor matched since {since}",
              highlight=False, markup=False, soft_wrap=True)  # fmt: skip
    for person_id in store.persons.inactive(name, found.before, SHOWN):
        out.print(f"  {person_id}", highlight=False, markup=False, soft_wrap=True)
    if count > SHOWN:
        out.print(f"  and {count - SHOWN} more", highlight=False)
