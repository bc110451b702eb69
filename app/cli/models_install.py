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
        str,
        typer.Argument(
            help="accurate or fast; of InsightFace: buffalo_l, buffalo_m, buffalo_s, buffalo_sc or "
            "antelopev2."
        ),
    ],
    *,
    accept_license: Accept = False,
    url: Annotated[
        str | None, typer.Option(help="A mirror: http://host/folder, which has the file.")
    ] = None,
) -> None:
    """Fetch the networks of a pack from those who publish them, check and convert them."""
    installed = read_settings().installed_packs
    with clear_errors():
        from app.lab.packing.published import PUBLISHED  # noqa: PLC0415

        if name in PUBLISHED:
            pack = _pull_published(name, installed, url, accept_license=accept_license)
        else:
            pack = _pull_composed(name, installed, url)
    _installed(pack)


def _require_new(folder: Path) -> None:
    """Raise PackError before anything is fetched."""
    if folder.exists():
        raise PackError(f"{folder} exists already. Remove it to fetch the pack again.")


def _pull_published(
    name: str, installed: Path, url: str | None, *, accept_license: bool
) -> ModelPack:
    """A pack of InsightFace's."""
    _require_new(installed / name)
    require_extra("insightface", "Fetching this pack", "insightface", "onnx")
    from app.lab.packing.download import fetched  # noqa: PLC0415
    from app.lab.packing.install import install_published  # noqa: PLC0415
    from app.lab.packing.published import LICENSE_TEXT, PUBLISHED  # noqa: PLC0415

    err.print(LICENSE_TEXT, markup=False, highlight=False, soft_wrap=True)
    if not accept_license:
        raise PackError("Nothing was fetched. Accept the license with --accept-license.")
    published = PUBLISHED[name]
    with _bar() as reported, fetched(published, installed, reported, base_url=url) as networks:
        return install_published(published, networks, installed, accept_license=True)


def _pull_composed(name: str, installed: Path, url: str | None) -> ModelPack:
    """The default pack with a network of somebody else's."""
    require_extra("lab", "Fetching a pack", "onnx")
    from app.lab.packing.composed import COMPOSED, compose  # noqa: PLC0415
    from app.lab.packing.published import PUBLISHED, fetch  # noqa: PLC0415

    if name not in COMPOSED:
        raise PackError(
            f"There is no pack {name!r} to fetch; there are {', '.join((*COMPOSED, *PUBLISHED))}."
        )
    _require_new(installed / name)
    pack = COMPOSED[name]
    err.print(pack.notice, markup=False, highlight=False, soft_wrap=True)
    with _bar() as reported:
        content = fetch(pack.file, reported, mirror=url)
    return compose(pack, content, installed)


def install(
    archive: Annotated[
        Path,
        typer.Argument(
            help="A zip file published by InsightFace or written by likeness models pack --zip, or "
            "the file that likeness models pull accurate or fast would fetch."
        ),
    ],
    *,
    accept_license: Accept = False,
) -> None:
    """Install a pack from a file that was made or fetched elsewhere; no network is needed."""
    with clear_errors():
        require_extra("lab", "Converting the networks of a pack", "onnx")
        from app.lab.packing.composed import compose, composed_of  # noqa: PLC0415
        from app.lab.packing.install import install_archive  # noqa: PLC0415

        installed = read_settings().installed_packs
        if composed := composed_of(archive):
            pack = compose(composed, archive.read_bytes(), installed)
        else:
            pack = install_archive(archive, installed, accept_license=accept_license)
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
