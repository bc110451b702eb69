"""`likeness export FILE`: a collection as a file that `likeness import` takes back."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress

from app.cli.console import clear_errors, err, out, read_settings
from app.cli.database import require_database
from app.encryption.ring import KeyRing
from app.gallery.gallery import DEFAULT_COLLECTION
from app.importing.gallery_export import export
from app.store.backends import create_engine
from app.store.schema import migrate
from app.store.store import Store


def export_collection(
    file: Annotated[Path, typer.Argument(help=".parquet, .jsonl, or .zip (with kept crops).")],
    collection: Annotated[str, typer.Option(help="Its name.")] = DEFAULT_COLLECTION,
) -> None:
    """Write persons, metadata and embeddings, in the clear: keep the file as you keep photos.

    A service over the same database can run meanwhile. For a copy of everything, including access
    to encrypted data, use likeness backup.
    """
    settings = read_settings()
    with clear_errors():
        engine = create_engine(require_database(settings).resolved_database_url)
        migrate(engine)
        store = Store(engine, ring=KeyRing.from_settings(settings))
        try:
            store.encryption.check_keys()
            record = store.collections.get(collection)
            total = store.collections.count(record).templates
            with Progress(BarColumn(), MofNCompleteColumn(), console=err, transient=True) as bar:
                task = bar.add_task("", total=total)
                count = export(store, record, file, lambda n: bar.update(task, completed=n))
        finally:
            store.close()
    out.print(f"{file}: {count} faces of {collection}, {record.embedding_space}", soft_wrap=True)
