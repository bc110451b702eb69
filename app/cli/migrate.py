"""`likeness migrate`: migrate the database to this version, or print what that would do."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from app.cli.console import announce_new_database, err, no_database, out, read_settings
from app.store.backends import create_engine, shown_url
from app.store.schema import migrate, pending


def migrate_database(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done; change nothing.")
    ] = False,
) -> None:
    """Migrate the database to this version, in one transaction.

    The service also does this when it starts, and so does every command that opens the database.
    Make a backup with the older version before.
    """
    settings = read_settings()
    with tempfile.TemporaryDirectory() as folder:
        url = settings.resolved_database_url
        if not dry_run:
            announce_new_database(settings)
        elif missing := no_database(settings):
            err.print(missing, markup=False, highlight=False, soft_wrap=True)
            url = Path(folder) / "likeness.db"  # what a new one would need
        engine = create_engine(url)
        try:
            steps = pending(engine)
            if not dry_run:
                migrate(engine)
        finally:
            engine.dispose()
    for step in steps:
        out.print("would run" if dry_run else "ran", step, markup=False, highlight=False)
    if not steps:
        out.print(f"{shown_url(engine)} is up to date.", markup=False, highlight=False)
