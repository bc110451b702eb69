"""`likeness models`: its commands, and those that list, show and verify packs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from app.cli.console import clear_errors, err, out, read_settings
from app.cli.models_install import install, pull
from app.cli.models_migrate import migrate_collection
from app.cli.models_pack import pack_networks
from app.decision.calibration_file import CALIBRATION_FILE
from app.errors import PackError
from app.inference.pack_spec import ModelPack, NetworkSpec
from app.inference.packs import find_pack, known_packs, load_pack, read_pack, verify_pack

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
    with clear_errors():
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
        for name, value in network.model_dump(exclude={"file"}).items():
            if value is not None:
                table.add_row(f"  {name}", str(value))
    table.add_section()
    calibrated = (pack.folder / CALIBRATION_FILE).is_file()
    table.add_row("threshold", f"{pack.decision.threshold:g}: {pack.decision.threshold_basis}")
    table.add_row("calibration", CALIBRATION_FILE if calibrated else "none: the threshold decides")
    out.print(table)


def _roles(pack: ModelPack) -> list[tuple[str, NetworkSpec]]:
    quality = [] if pack.quality is None else [("quality", pack.quality)]
    landmarks = [] if pack.landmarks is None else [("landmarks", pack.landmarks)]
    return [
        ("detector", pack.detector),
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
    with clear_errors():
        loaded = load_pack(pack or settings.pack, settings.installed_packs)
    names = ", ".join(network.file for network in loaded.networks)
    out.print(f"{loaded.folder}: intact are {names}.", soft_wrap=True)


models_app.command()(pull)
models_app.command()(install)
models_app.command("pack")(pack_networks)
models_app.command("migrate")(migrate_collection)
