"""`likeness models`: its commands; those that list, show and verify packs; and that which moves a
collection into the embedding space of another pack."""

import secrets
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from app.access.keys import audit_key
from app.cli.console import (
    CollectionArgument,
    CollectionOption,
    collection_name,
    err,
    finish_erasure,
    out,
    read_settings,
    require_database,
)
from app.cli.models_add import install, pack_networks, pull
from app.decision.calibrations import CALIBRATION_FILE
from app.encryption.ring import KeyRing
from app.errors import PackError
from app.inference.pack_spec import IntegerSpec, ModelPack, NetworkSpec
from app.inference.packs import find_pack, known_packs, load_pack, read_pack, verify_pack
from app.reembedding import Reembedding, Space, SpaceComparison
from app.settings import Settings
from app.store.store import opened_store

models_app = typer.Typer(
    help="Model packs: list, show, verify, pull, install, pack, migrate.",
    no_args_is_help=True,
    add_completion=False,
)

PackArgument = Annotated[str | None, typer.Argument(help="Name or folder; default: LIKENESS_PACK.")]


@models_app.command("list")
def list_packs() -> None:
    """List the packs that came with this installation and those that were installed."""
    table = Table()
    for title in ("pack", "version", "networks", "license", "space"):
        # Names and spaces are arguments and fields elsewhere: never cut off.
        table.add_column(title, no_wrap=title in ("version", "space"), overflow="fold")
    settings = read_settings()
    for folder in known_packs(settings.installed_packs):
        # A broken pack must not hide the others.
        try:
            pack = read_pack(folder)
        except PackError as error:
            err.print(error.detail, markup=False, highlight=False)
            continue
        table.add_row(
            pack.name,
            pack.version,
            ", ".join(_architectures(pack)),
            " / ".join(dict.fromkeys(network.licence for network in pack.networks)),
            pack.embedding_space,
        )
    out.print(table)


def _architectures(pack: ModelPack) -> list[str]:
    """Of the networks that embeddings depend on, with the length of an embedding."""
    landmarks = [] if pack.landmarks is None else [pack.landmarks.architecture]
    recogniser = f"{pack.recogniser.architecture} ({pack.recogniser.dimension})"
    return [pack.detector.architecture, *landmarks, recogniser]


@models_app.command("show")
def show(pack: PackArgument = None) -> None:
    """Show digests, sizes, licenses, threshold and calibration of a pack, and check its files."""
    settings = read_settings()
    found = read_pack(find_pack(pack or settings.pack, settings.installed_packs))
    _print_pack(found)
    verify_pack(found)
    out.print("The digest of each network is correct.")


def _print_pack(pack: ModelPack) -> None:
    table = Table(show_header=False, title=f"{pack.name} {pack.version}")
    table.add_column()
    table.add_column(overflow="fold")  # digests are there to be read to the end
    table.add_row("folder", str(pack.folder))
    table.add_row("description", pack.description)
    table.add_row("embedding space", pack.embedding_space)
    for role, network in _roles(pack):
        table.add_section()
        table.add_row(role, f"{network.file}, {_size(pack.path(network))}")
        for name, value in network.model_dump(exclude={"file", "int8"}).items():
            if value is not None:
                table.add_row(f"  {name}", str(value))
    table.add_section()
    calibrated = (pack.folder / CALIBRATION_FILE).is_file()
    table.add_row("threshold", f"{pack.decision.threshold:g}: {pack.decision.threshold_basis}")
    table.add_row("calibration", CALIBRATION_FILE if calibrated else "none: the threshold decides")
    out.print(table)


def _roles(pack: ModelPack) -> list[tuple[str, NetworkSpec | IntegerSpec]]:
    integers = [] if pack.detector.int8 is None else [("detector in int8", pack.detector.int8)]
    quality = [] if pack.quality is None else [("quality", pack.quality)]
    landmarks = [] if pack.landmarks is None else [("landmarks", pack.landmarks)]
    return [
        ("detector", pack.detector),
        *integers,
        *landmarks,
        ("recogniser", pack.recogniser),
        *(("liveness", network) for network in pack.liveness),
        *quality,
    ]


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "missing"


@models_app.command("verify")
def verify(pack: PackArgument = None) -> None:
    """Check the SHA-256 of each network of a pack."""
    settings = read_settings()
    loaded = load_pack(pack or settings.pack, settings.installed_packs)
    names = ", ".join(network.file for network in loaded.files)
    out.print(f"{loaded.folder}: intact are {names}.", soft_wrap=True)


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
            help="Delete the embeddings of other embedding spaces; this cannot be undone.",
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
    target = load_pack(to, settings.installed_packs)
    url = require_database(settings).resolved_database_url
    ring, key = KeyRing.from_settings(settings), audit_key(settings)
    with opened_store(url, ring, key) as store:
        record = store.collections.get(collection)
        if record.embedding_space == target.embedding_space:
            out.print(
                f"{collection} already has {target.name}'s embedding space "
                f"{target.embedding_space}."
            )
        else:
            if forget and not cut_over:
                raise typer.BadParameter(
                    "--forget would also delete the embeddings that this command makes. Give "
                    "--cut-over too, or forget those of other spaces with --to the pack of "
                    f"{record.embedding_space}, which the collection has."
                )
            source = _pack_of(record.embedding_space, settings)
            work = Reembedding(store, collection, source, target, settings.device)
            _migrate(work, cut_over=cut_over)
            out.print(
                f"{collection} has {target.name}'s embedding space {target.embedding_space} now. "
                f"Serve it: LIKENESS_PACK={to} likeness serve"
                if cut_over
                else "Nothing was changed yet; --cut-over switches to the new embedding space.",
                soft_wrap=True,
            )
        if forget:
            out.print(
                f"{store.alternate_embeddings.drop(collection)} embeddings of other "
                "embedding spaces were deleted."
            )
        if cut_over or forget:
            finish_erasure(store.database)


def _migrate(work: Reembedding, *, cut_over: bool) -> None:
    """Embed the crops, print the comparison, and switch if so asked."""
    if cut_over:
        work.require_no_pack_specific_values()
    columns = ("faces", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("", total=None)
        work.build(lambda done, total: progress.update(task, completed=done, total=total))
    _print(work.compare(np.random.default_rng(secrets.randbits(64))))
    if cut_over:
        work.cut_over()


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


models_app.command()(pull)
models_app.command()(install)
models_app.command("pack")(pack_networks)
models_app.command("migrate")(migrate_collection)
