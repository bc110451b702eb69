"""`likeness models pull | install | pack`: packs from elsewhere, and packs of one's own."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from app.cli.console import clear_errors, err, out, read_settings, require_extra
from app.errors import PackError
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack

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
            raise PackError(f"{installed / name} is there already. Remove it to fetch it again.")
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


NewFolder = Annotated[
    Path, typer.Argument(help="The new folder; its name is the name of the pack.")
]
BasePack = Annotated[
    str, typer.Option(help="Pack from which everything is taken that no option names.")
]
DetectorFile = Annotated[Path | None, typer.Option(help="ONNX file.")]
ArchitectureOption = Annotated[
    str | None, typer.Option(help="Architecture of the detector: centerface, scrfd, yunet.")
]
RecogniserFile = Annotated[Path | None, typer.Option(help="ONNX file.")]
PixelMean = Annotated[float | None, typer.Option(help="Subtracted from every pixel.")]
PixelDivisor = Annotated[
    float | None, typer.Option(help="Divisor of pixels, after the mean is subtracted.")
]
ChannelOrder = Annotated[
    str | None, typer.Option(help="Channel order of the recogniser: rgb or bgr.")
]
VariantProof = Annotated[
    Path | None,
    typer.Option(
        help=(
            "Photos of people: check on their faces that the recogniser is a variant of "
            "the base pack's, so that embeddings of both can be compared."
        )
    ),
]
KeepPrelu = Annotated[
    bool,
    typer.Option(
        help="Leave the recogniser's PReLU as it is. By default it is rewritten, which makes "
        "the recogniser about twice as fast on a CPU and changes only the rounding."
    ),
]
LandmarksFile = Annotated[
    str | None,
    typer.Option(
        help="ONNX file of MTCNN's ONet, which corrects the detector's landmarks; none leaves "
        "out the base pack's."
    ),
]
Mirror = Annotated[
    bool | None,
    typer.Option(
        help="Embed each face and its mirror image, and take the mean: more accurate, in twice "
        "the recogniser's time."
    ),
]
LivenessFiles = Annotated[
    list[str] | None,
    typer.Option(help="SCALE:FILE.onnx of a MiniFASNet, as 2.7:MiniFASNetV2.onnx; repeatable."),
]
Threshold = Annotated[float | None, typer.Option(help="Threshold to use without a calibration.")]
ThresholdBasis = Annotated[str, typer.Option(help="Source of that threshold.")]
CalibrationFile = Annotated[
    Path | None, typer.Option(help="File written by likeness evaluate --calibration.")
]
License = Annotated[str | None, typer.Option(help="License of the networks that are given.")]
NetworkSource = Annotated[str | None, typer.Option(help="Where the networks come from.")]
AsZip = Annotated[
    bool, typer.Option("--zip", help="Also write FOLDER.zip, for likeness models install.")
]


def pack_networks(
    folder: NewFolder,
    *,
    base: BasePack = "default",
    detector: DetectorFile = None,
    architecture: ArchitectureOption = None,
    recogniser: RecogniserFile = None,
    mean: PixelMean = None,
    std: PixelDivisor = None,
    colour: ChannelOrder = None,
    variant: VariantProof = None,
    keep_prelu: KeepPrelu = False,
    landmarks: LandmarksFile = None,
    mirror: Mirror = None,
    liveness: LivenessFiles = None,
    threshold: Threshold = None,
    threshold_basis: ThresholdBasis = "",
    calibration: CalibrationFile = None,
    licence: License = None,
    source: NetworkSource = None,
    as_zip: AsZip = False,
) -> None:
    """Write a pack: networks, pack.toml with their digests, calibration. `serve` runs it."""
    with clear_errors():
        require_extra("lab", "Writing a pack", "onnx")
        from app.lab.packing.own import OwnNetworks, make_pack  # noqa: PLC0415

        made = make_pack(
            load_pack(base, read_settings().installed_packs),
            OwnNetworks(
                detector=detector,
                architecture=architecture,
                recogniser=recogniser,
                mean=mean,
                std=std,
                colour=colour,
                variant=variant,
                keep_prelu=keep_prelu,
                landmarks=landmarks,
                mirror=mirror,
                liveness=tuple(liveness or ()),
                threshold=threshold,
                threshold_basis=threshold_basis,
                calibration=calibration,
                licence=licence,
                source=source,
            ),
            folder,
        )
        if as_zip:
            _write_zip(folder)
    out.print(f"{made.folder}: embedding space {made.embedding_space}", soft_wrap=True)


def _write_zip(folder: Path) -> None:
    """Write FOLDER.zip beside the folder."""
    try:
        shutil.make_archive(str(folder), "zip", folder)
    except OSError as error:
        raise PackError(f"{folder}.zip cannot be written: {error.strerror}.") from error


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
