"""Makes the ONNX files of a model pack from published networks (needs the `export` extra).

    python scripts/export_onnx.py recogniser CHECKPOINT.pt OUT.onnx --faces PHOTOS
    python scripts/export_onnx.py recogniser SOURCE.onnx OUT.onnx --faces PHOTOS --precision fp16
    python scripts/export_onnx.py tflite SOURCE.tflite OUT.onnx --faces FOLDER
    python scripts/export_onnx.py detector SOURCE.onnx OUT.onnx
    python scripts/export_onnx.py int8-detector SOURCE.onnx OUT.onnx --faces PHOTOS \\
        --calibration OTHERS
    python scripts/export_onnx.py landmarks CHECKPOINT.pt OUT.onnx --faces PHOTOS
    python scripts/export_onnx.py pixels SOURCE.onnx OUT.onnx --mean 127.5 --std 128 --rgb

Every export is proven against its source before it appears under its name; one that fails is
deleted, and the exit status is 1.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from app.disk import sha256
from app.errors import PackError
from app.faces.landmarks import SIDE, TARGET
from app.inference.packs import load_pack
from app.lab.export.accuracy import compare
from app.lab.export.detector import export_detector
from app.lab.export.faces import Normalisation, align_folder, parse_channels
from app.lab.export.integer_detector import (
    CalibrationPhotos,
    export_integer_detector,
    provenance,
)
from app.lab.export.parity import Agreement, ExportError
from app.lab.export.precision import Precision
from app.lab.export.recogniser import (
    Options,
    SourceRecogniser,
    export_pixels,
    export_recogniser,
    read_onnx,
)
from scripts.tflite_export.convert import export_tflite

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Published = Annotated[Path, typer.Argument(help="The published network.")]
Out = Annotated[Path, typer.Argument(help="The ONNX file to write.")]
ArchitectureOption = Annotated[
    str, typer.Option(help="Of a checkpoint: a name, module:function of your own, or auto.")
]
Size = Annotated[int, typer.Option(help="Side of the faces a checkpoint takes, pixels.")]

Photos = Annotated[
    Path,
    typer.Option(
        help="Photos of people, in sub-folders too: the export is proven on their faces. Photos "
        "of the network's own size are taken for aligned faces."
    ),
]
Mean = Annotated[
    str, typer.Option(help="Subtracted from every pixel: a number, three, or imagenet.")
]
Std = Annotated[str, typer.Option(help="Every pixel is then divided by this; as --mean.")]
Rgb = Annotated[bool, typer.Option("--rgb/--bgr", help="The colours the network was trained on.")]
Opset = Annotated[int | None, typer.Option(help="Version of the operators.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Fix the batch; free without.")]
Pixels = Annotated[
    bool, typer.Option(help="Take uint8 BGR pixels, colours and normalisation in the graph.")
]
Unit = Annotated[
    bool,
    typer.Option(help="Answer vectors of length 1; the length is then no measure of quality."),
]
Simplify = Annotated[
    bool, typer.Option(help="Compute constants and fold batch normalisations first.")
]
KeepPrelu = Annotated[
    bool,
    typer.Option(
        "--keep-prelu",
        help="Leave PReLU as it is: for GPUs. In fp32 it is otherwise rewritten for CPUs.",
    ),
]
PrecisionOption = Annotated[Precision, typer.Option(help="Of weights and activations.")]
Calibration = Annotated[
    Path | None, typer.Option(help="Photos that the ranges of int8 are counted on.")
]
Minimum = Annotated[
    float | None, typer.Option(help="Lowest cosine to the source; by the precision without.")
]
Evaluate = Annotated[
    Path | None,
    typer.Option(help="CSV of pairs (image_a,image_b,same): error rates before and after."),
]


@app.command()
def recogniser(
    source: Published,
    out: Out,
    *,
    faces: Photos,
    architecture: ArchitectureOption = "auto",
    size: Size = 112,
    mean: Mean = "127.5",
    std: Std = "127.5",
    rgb: Rgb = True,
    opset: Opset = None,
    batch: Batch = None,
    pixels: Pixels = False,
    unit: Unit = False,
    simplify: Simplify = False,
    keep_prelu: KeepPrelu = False,
    precision: PrecisionOption = Precision.FP32,
    calibration: Calibration = None,
    minimum_cosine: Minimum = None,
    evaluate: Evaluate = None,
) -> None:
    """Export a recogniser: an ONNX file, or a PyTorch checkpoint (needs PyTorch: `make torch`)."""
    with _failures_on_stderr():
        given = Normalisation(
            parse_channels(mean, "mean", rgb=rgb), parse_channels(std, "std", rgb=rgb), rgb
        )
        network = _read(source, given, architecture=architecture, size=size, opset=opset)
        found = export_recogniser(
            network,
            out,
            align_folder(faces, network.size),
            Options(pixels, unit, precision, batch, opset, minimum_cosine, simplify, keep_prelu),
            align_folder(calibration, network.size) if calibration else None,
        )
        print(f"{out}: sha256 {found.sha256}; {_agreement(found.agreement)}")
        if found.kept:
            print(f"kept in float32: {', '.join(found.kept)}")
        for name, accuracy in compare(network, out, evaluate) if evaluate else ():
            print(
                f"{name}: {accuracy.pairs} pairs, accuracy {accuracy.accuracy:.4%}, equal error "
                f"rate {accuracy.equal_error_rate:.4%}"
            )


def _read(
    source: Path, given: Normalisation, *, architecture: str, size: int, opset: int | None
) -> SourceRecogniser:
    if source.suffix == ".onnx":
        return read_onnx(source, given)
    try:
        # PyTorch is heavy, and nothing else here needs it.
        from scripts.torch_export.source import read_checkpoint  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _no_torch(source, error) from error
    return read_checkpoint(source, architecture, size, given, opset)


def _no_torch(source: Path, error: ModuleNotFoundError) -> ExportError:
    return ExportError(
        f"{source} is no .onnx file, and a checkpoint needs PyTorch: {error.name} is not "
        "installed. `make torch` installs it."
    )


def _agreement(found: Agreement) -> str:
    return (
        f"{found.faces} faces, lowest cosine to the source {found.minimum_cosine:.9f}, length "
        f"changed by at most {found.maximum_length_change:.1e}"
    )


@app.command()
def tflite(
    source: Published,
    out: Out,
    faces: Annotated[
        Path, typer.Option(help="Folder of at least 20 aligned faces of the network's input size.")
    ],
    mean: Annotated[float, typer.Option(help="Subtracted from every pixel.")] = 127.5,
    std: Annotated[float, typer.Option(help="Every pixel is then divided by this.")] = 128.0,
) -> None:
    """Convert a TFLite recogniser (float32, RGB)."""
    with _failures_on_stderr():
        found = export_tflite(source, out, faces, Normalisation(mean, std))
        print(f"{out}: sha256 {sha256(out)}; {_agreement(found)}")


@app.command()
def detector(source: Published, out: Out) -> None:
    """Free the batch, height and width of a CenterFace or SCRFD detector."""
    with _failures_on_stderr():
        found = export_detector(source, out)
        print(
            f"{out}: sha256 {sha256(out)}; {found.architecture}, differs from the source by at "
            f"most {found.source_difference:.1e}, batched from alone by at most "
            f"{found.batch_difference:.1e}"
        )


@app.command("int8-detector")
def int8_detector(
    source: Published,
    out: Out,
    *,
    faces: Annotated[
        Path, typer.Option(help="Photos of people: both networks must find the same faces there.")
    ],
    calibration: Annotated[
        Path, typer.Option(help="Other photos, on which the ranges of values are measured.")
    ],
    pack: Annotated[
        str, typer.Option(help="The pack that says how the detector is run: a name or a folder.")
    ] = "default",
) -> None:
    """Write a detector in 8-bit integers, for the [detector.int8] of its pack."""
    with _failures_on_stderr():
        try:
            spec = load_pack(pack).detector
        except PackError as error:
            raise ExportError(error.detail) from error
        photos = CalibrationPhotos.of_folders(calibration, faces)
        found = export_integer_detector(source, spec, photos, out)
        for name, value in {"file": out.name, **provenance(found)}.items():
            print(f"{name} = {json.dumps(value)}")


@app.command()
def landmarks(source: Published, out: Out, *, faces: Photos) -> None:
    """Export MTCNN's ONet, which corrects landmarks (`onet.pt` of facenet-pytorch; needs PyTorch:
    `make torch`)."""
    with _failures_on_stderr():
        try:
            # As for recognisers: only checkpoints need PyTorch.
            from scripts.torch_export.landmarks import export_landmarks  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise _no_torch(source, error) from error
        found = export_landmarks(source, out, align_folder(faces, SIDE, target=TARGET))
        print(
            f"{out}: sha256 {found.sha256}; {found.faces} faces, differs from the source by at "
            f"most {found.source_difference:.1e} of the crop's side, batched from alone by at "
            f"most {found.batch_difference:.1e}"
        )


@app.command()
def pixels(
    source: Published,
    out: Out,
    mean: Annotated[float, typer.Option(help="What was subtracted from every pixel.")],
    std: Annotated[float, typer.Option(help="What every pixel was then divided by.")],
    rgb: Annotated[bool, typer.Option(help="The colour order the network was given.")] = True,
) -> None:
    """Let a network take uint8 BGR pixels, its normalisation folded into the graph."""
    with _failures_on_stderr():
        difference = export_pixels(source, out, Normalisation(mean, std, rgb))
        print(f"{out}: sha256 {sha256(out)}; differs from the source by at most {difference:.1e}")


@contextmanager
def _failures_on_stderr() -> Iterator[None]:
    try:
        yield
    except ExportError as error:
        print(f"export failed, nothing was written: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
