"""`likeness models migrate`: a collection into another model pack's embedding space."""

import secrets
from typing import Annotated

import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from app.access.keys import audit_key
from app.cli.collection_name import CollectionArgument, CollectionOption, collection_name
from app.cli.console import clear_errors, err, out, read_settings
from app.cli.database import require_database
from app.encryption.ring import KeyRing
from app.errors import PackError
from app.inference.pack_spec import ModelPack
from app.inference.packs import known_packs, load_pack
from app.reembedding import Reembedding, Space, SpaceComparison
from app.settings import Settings
from app.store.backends import create_engine
from app.store.schema import migrate
from app.store.store import Store


def migrate_collection(
    name: CollectionArgument = None,
    *,
    named: CollectionOption = None,
    to: Annotated[str, typer.Option("--to", help="The new pack: a name or a folder.")],
    cut_over: Annotated[
        bool,
        typer.Option("--cut-over", help="Then switch the collection to the new embedding space."),
    ] = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget",
            help="Erase the embeddings of other embedding spaces; this cannot be undone.",
        ),
    ] = False,
) -> None:
    """Embed a collection's kept crops with another pack, and compare with its present embeddings.

    A service over the same database can run meanwhile. With --cut-over the new embeddings take the
    place of the old ones in one transaction; from then on a service of the new pack serves the
    collection, and the old embeddings are kept. The same command with the old pack switches back.
    """
    collection = collection_name(name, named)
    settings = read_settings()
    with clear_errors():
        target = load_pack(to, settings.installed_packs)
        store = _store(settings)
        try:
            record = store.collections.get(collection)
            if record.embedding_space == target.embedding_space:
                out.print(
                    f"{collection} already has {target.name}'s embedding space "
                    f"{target.embedding_space}."
                )
            else:
                work = Reembedding(store, collection, target)
                _build(work, settings)
                source = _pack_of(record.embedding_space, settings)
                _print(work.compare(source, np.random.default_rng(secrets.randbits(64))))
                if cut_over:
                    work.cut_over()
                    out.print(
                        f"{collection} has {target.name}'s embedding space "
                        f"{target.embedding_space} now. Serve it: LIKENESS_PACK={to} likeness "
                        "serve",
                        soft_wrap=True,
                    )
                else:
                    out.print(
                        "Nothing was changed yet; --cut-over switches to the new embedding space."
                    )
            if forget:
                out.print(
                    f"{store.alternate_embeddings.drop(collection)} embeddings of other "
                    "embedding spaces are erased."
                )
        finally:
            store.close()


def _store(settings: Settings) -> Store:
    engine = create_engine(require_database(settings).resolved_database_url)
    migrate(engine)
    store = Store(engine, ring=KeyRing.from_settings(settings), audit_key=audit_key(settings))
    store.encryption.check_keys()
    return store


def _build(work: Reembedding, settings: Settings) -> None:
    columns = ("faces", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("", total=None)
        work.build(
            settings.device,
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def _pack_of(embedding_space: str, settings: Settings) -> ModelPack | None:
    """A known pack of that space, the running service's before others."""
    candidates = [settings.pack, *map(str, known_packs(settings.installed_packs))]
    for candidate in candidates:
        try:
            pack = load_pack(candidate, settings.installed_packs)
        except PackError:
            continue  # a broken one says nothing about the others
        if pack.embedding_space == embedding_space:
            return pack
    return None


def _print(found: SpaceComparison) -> None:
    table = Table("", "before", "after", title=f"{found.templates} faces in both spaces")
    rows = (
        ("threshold", lambda space: f"{space.threshold:.3f}"),
        ("one person: accepted", lambda space: _share(space.mated_accepted, space.mated)),
        ("different people: accepted", lambda s: _share(s.non_mated_accepted, s.non_mated)),
        ("nearest face is their own", _rank),
    )
    for name, shown in rows:
        table.add_row(name, shown(found.before), shown(found.after))
    out.print(table)
    comparisons = found.before.mated + found.before.non_mated
    out.print(f"{found.changed} of {comparisons} comparisons are decided differently.")


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({part / whole:.2%})" if whole else "none there"


def _rank(space: Space) -> str:
    return "nobody has two" if space.rank_1 is None else f"{space.rank_1:.2%}"
