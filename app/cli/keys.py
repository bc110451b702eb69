"""`likeness keys`: keys for the encryption of embeddings at rest."""

from typing import Annotated

import typer

from app.cli.console import clear_errors
from app.gallery.encryption.keys import new_key_line

keys_app = typer.Typer(help="Encryption keys: generate.", no_args_is_help=True)


@keys_app.callback()
def _keys() -> None:
    """Keep `generate` a command of its own; Typer folds an only command into its parent."""


@keys_app.command()
def generate(
    key_id: Annotated[
        str | None, typer.Option("--id", help="Id of the key; default: made from the key.")
    ] = None,
) -> None:
    """Print a new random key as one line of a key file, and keep it nowhere."""
    with clear_errors():
        typer.echo(new_key_line(key_id))
