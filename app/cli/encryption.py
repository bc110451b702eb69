"""`likeness encryption`: keys for the encryption of embeddings at rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from app.access.keys import audit_key
from app.cli.console import err, finish_erasure, out, read_settings, require_database
from app.encryption.keys import new_key_line
from app.encryption.ring import KeyRing
from app.errors import CollectionNotFound
from app.store.records import EncryptionState
from app.store.store import Store, opened_store

encryption_app = typer.Typer(
    help="Encryption at rest: generate, status, rotate.",
    no_args_is_help=True,
    add_completion=False,
)


@encryption_app.command()
def generate(
    key_id: Annotated[
        str | None, typer.Option("--id", help="Id of the key; default: derived from the key.")
    ] = None,
) -> None:
    """Print a new random key as one line of a key file, without storing it."""
    typer.echo(new_key_line(key_id))


@encryption_app.command()
def status() -> None:
    """Say what is encrypted, and by which keys."""
    with _opened() as store:
        _show(store.encryption.state())


@encryption_app.command()
def rotate() -> None:
    """Bring everything under the first key that is given: plain embeddings are encrypted, and
    persons' data keys are wrapped again, by that key. The service may run meanwhile; if this
    command was interrupted, run it again."""
    with _opened() as store:
        persons, failed = 0, 0
        for collection in list(store.collections.every()):
            with err.status(f"{collection.name}: encrypting"):
                try:
                    done = store.encryption.reencrypt(collection.name)
                except CollectionNotFound:  # deleted meanwhile
                    continue
            persons += done.persons
            failed += len(done.failed)
            for person_id in done.failed:
                err.print(
                    f"{collection.name}: the stored data of the person '{person_id}' cannot be "
                    "decrypted and was left as it is. Restore it from a backup, or delete the "
                    "person.",
                    markup=False,
                )
        finish_erasure(store.database)
        out.print(f"{persons} persons' keys are wrapped by the active key.")
        out.print("Older index snapshots are removed when a service starts with this key.")
        _show(store.encryption.state())
    if failed:
        raise typer.Exit(1)


@contextmanager
def _opened() -> Iterator[Store]:
    settings = require_database(read_settings())
    ring = KeyRing.from_settings(settings)
    with opened_store(settings.resolved_database_url, ring, audit_key(settings)) as store:
        yield store


def _show(state: EncryptionState) -> None:
    out.print(f"templates: {state.encrypted} encrypted, {state.plain} plain")
    out.print(
        f"plain: {state.plain_crops} aligned faces, {state.plain_alternates} alternate embeddings"
    )
    for key_id, persons in sorted(state.persons_by_key.items()):
        out.print(f"key {key_id}: {persons} persons", highlight=False)
