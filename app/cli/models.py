"""`likeness models`: which packs there are and whether their files are intact."""

from typing import Annotated

import typer
from rich.table import Table

from app.cli.console import clear_errors, out, read_settings
from app.inference.packs import builtin_packs, load_pack, read_pack

models_app = typer.Typer(help="Model packs: list, verify.", no_args_is_help=True)


@models_app.command("list")
def list_packs() -> None:
    """The packs that came with this installation."""
    table = Table("pack", "version", "detector", "recogniser", "dimension", "licence", "space")
    with clear_errors():
        for folder in builtin_packs():
            pack = read_pack(folder)
            table.add_row(
                pack.name,
                pack.version,
                pack.detector.architecture,
                pack.recogniser.architecture,
                str(pack.recogniser.dimension),
                f"{pack.detector.licence} / {pack.recogniser.licence}",
                pack.embedding_space,
            )
    out.print(table)


@models_app.command("verify")
def verify(
    pack: Annotated[
        str | None, typer.Argument(help="Name or folder; default: LIKENESS_PACK.")
    ] = None,
) -> None:
    """Check the SHA-256 of each network of a pack."""
    with clear_errors():
        loaded = load_pack(pack or read_settings().pack)
    out.print(f"{loaded.folder}: {loaded.detector.file} and {loaded.recogniser.file} are intact.")
