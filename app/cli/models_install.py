"""`likeness models pull | install`: packs from elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from app.cli.console import clear_errors, err, out, read_settings, require_extra
from app.errors import PackError
from app.inference.pack_spec import ModelPack

Accept = Annotated[
    bool, typer.Option("--accept-license", help="Accept the license that was shown.")
]


def pull(
    name: Annotated[
        str, typer.Argument(help="buffalo_l, buffalo_m, buffalo_s, buffalo_sc or antelopev2.")
    ],
    *,
    accept_license: Accept = False,
    url: Annotated[
        str | None, typer.Option(help="A mirror of InsightFace's model zoo: http://host/folder.")
    ] = None,
) -> None:
    """Fetch a pack that InsightFace publishes, check it and convert it."""
    installed = read_settings().installed_packs
    with clear_errors():
        from app.lab.packing.published import LICENSE_TEXT, PUBLISHED  # noqa: PLC0415

        published = PUBLISHED.get(name)
        if published is None:
            raise PackError(
                f"InsightFace publishes no pack {name!r}; there are {', '.join(PUBLISHED)}."
            )
        require_extra("insightface", "Fetching a pack", "insightface", "onnx")
        from app.lab.packing.download import fetched  # noqa: PLC0415
        from app.lab.packing.install import install_published  # noqa: PLC0415

        if (installed / name).exists():
            raise PackError(
                f"{installed / name} exists already. Remove it to fetch the pack again."
            )
        err.print(LICENSE_TEXT, markup=False, highlight=False, soft_wrap=True)
        if not accept_license:
            raise PackError("Nothing was fetched. Accept the license with --accept-license.")
        with _bar() as reported, fetched(published, installed, reported, base_url=url) as networks:
            pack = install_published(published, networks, installed, accept_license=True)
    _installed(pack)


def install(
    archive: Annotated[
        Path,
        typer.Argument(
            help="A zip file published by InsightFace, or written by likeness models pack --zip."
        ),
    ],
    *,
    accept_license: Accept = False,
) -> None:
    """Install a pack from a zip that was made or fetched elsewhere; no network is needed."""
    with clear_errors():
        require_extra("lab", "Converting the networks of a pack", "onnx")
        from app.lab.packing.install import install_archive  # noqa: PLC0415

        pack = install_archive(
            archive, read_settings().installed_packs, accept_license=accept_license
        )
    _installed(pack)


def _installed(pack: ModelPack) -> None:
    out.print(
        f"{pack.name} is in {pack.folder}. Serve it: LIKENESS_PACK={pack.name} likeness serve",
        soft_wrap=True,
    )


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
