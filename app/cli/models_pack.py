"""`likeness models pack`: a pack of one's own networks."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from app.cli.console import clear_errors, out, read_settings, require_extra
from app.errors import PackError
from app.inference.packs import load_pack

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
    """Write a pack: networks, pack.toml with their digests, calibration. `serve` runs it."""
    with clear_errors():
        require_extra("lab", "Writing a pack", "onnx")
        from app.lab.packing.joined import described  # noqa: PLC0415
        from app.lab.packing.own import OwnNetworks, make_pack  # noqa: PLC0415

        source_pack = load_pack(base, read_settings().installed_packs)
        made = make_pack(
            source_pack,
            OwnNetworks(
                detector=detector,
                architecture=architecture,
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
            _write_zip(folder)
    out.print(f"{made.folder}: embedding space {made.embedding_space}", soft_wrap=True)


def _write_zip(folder: Path) -> None:
    """Write FOLDER.zip beside the folder."""
    try:
        shutil.make_archive(str(folder), "zip", folder)
    except OSError as error:
        raise PackError(f"{folder}.zip cannot be written: {error.strerror}.") from error
