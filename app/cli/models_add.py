"""`likeness models pull | install | pack`: packs from elsewhere, and of one's own networks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from app.cli.console import err, out, read_settings, require_extra
from app.errors import PackError
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack

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
    """Install a pack from a file that was made or fetched elsewhere, without the internet."""
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
IntegersFrom = Annotated[
    Path | None,
    typer.Option(
        "--int8",
        help="Folder of photos of people, at least 40: also make the detector in 8-bit integers, "
        "with the ranges of values in every second photo, and compare both on the others.",
    ),
]
RecogniserFiles = Annotated[
    list[Path] | None,
    typer.Option(
        help="ONNX file; repeatable: several are joined into one network. --weight, --mean, --std "
        "and --colour are then given once for all, or once for each in the same order."
    ),
]
Weights = Annotated[
    list[float] | None,
    typer.Option(help="Weight of a recogniser's similarity among those that are joined."),
]
PixelMeans = Annotated[
    list[str] | None,
    typer.Option(
        help="Subtracted from every pixel: a number, three with commas between, or imagenet."
    ),
]
PixelDivisors = Annotated[
    list[str] | None,
    typer.Option(help="Divisor of pixels, after the mean is subtracted; as --mean."),
]
ChannelOrders = Annotated[
    list[str] | None, typer.Option(help="Channel order of the recogniser: rgb or bgr.")
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
        help="Leave the recogniser's PReLU as it is. By default it is rewritten: on a CPU the "
        "recogniser then takes 0.4 to 0.6 of the time, and only the rounding changes."
    ),
]
LandmarksFile = Annotated[
    str | None,
    typer.Option(
        help="ONNX file of MTCNN's ONet, which corrects the detector's landmarks; the value "
        "'none' leaves out the base pack's."
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
License = Annotated[
    str | None,
    typer.Option(help="License of the networks that are given; the key licence of pack.toml."),
]
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
    int8: IntegersFrom = None,
    recogniser: RecogniserFiles = None,
    weight: Weights = None,
    mean: PixelMeans = None,
    std: PixelDivisors = None,
    colour: ChannelOrders = None,
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
    """Write a pack: networks, pack.toml with their digests, calibration.
    LIKENESS_PACK=FOLDER likeness serve uses it."""
    require_extra("lab", "Writing a pack", "onnx")
    from app.lab.packing.joined import described  # noqa: PLC0415
    from app.lab.packing.own import OwnNetworks, make_pack  # noqa: PLC0415
    from app.lab.packing.writing import require_new, write_zip  # noqa: PLC0415

    of_recogniser = {"weight": weight, "mean": mean, "std": std, "colour": colour,
                     "variant": variant, "keep-prelu": keep_prelu}  # fmt: skip
    _require_used("recogniser", of_recogniser, given=bool(recogniser))
    _require_used("detector", {"architecture": architecture}, given=detector is not None)
    _require_used("threshold", {"threshold-basis": threshold_basis}, given=threshold is not None)
    archive = folder.with_name(folder.name + ".zip")
    require_new(folder, *([archive] if as_zip else []))
    source_pack = load_pack(base, read_settings().installed_packs)
    made = make_pack(
        source_pack,
        OwnNetworks(
            detector=detector,
            architecture=architecture,
            integers=int8,
            recognisers=described(
                source_pack,
                recogniser or [],
                weights=weight,
                means=mean,
                stds=std,
                colours=colour,
            ),
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
        write_zip(folder, archive)
    out.print(f"{made.folder}: embedding space {made.embedding_space}", soft_wrap=True)


def _require_used(option: str, dependent: Mapping[str, object], *, given: bool) -> None:
    """Raise PackError for options that are only used with another one, which is missing."""
    for name, value in dependent.items():
        if value and not given:
            raise PackError(f"--{name} has no effect without --{option}: give both, or neither.")
