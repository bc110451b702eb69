"""Makes the ONNX files of a model pack from published networks (needs the `export` extra).

    python scripts/export_onnx.py torch CHECKPOINT.pt OUT.onnx --faces PHOTOS
    python scripts/export_onnx.py recogniser SOURCE.onnx OUT.onnx --faces PHOTOS --precision fp16
    python scripts/export_onnx.py tflite SOURCE.tflite OUT.onnx --faces FOLDER
    python scripts/export_onnx.py detector SOURCE.onnx OUT.onnx
    python scripts/export_onnx.py pixels SOURCE.onnx OUT.onnx --mean 127.5 --std 128 --rgb

Every export is proven against its source before it appears under its name; one that fails is
deleted, and the exit status is 1.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from app.onnx_export.accuracy import compare
from app.onnx_export.artefact import sha256
from app.onnx_export.detector import export_detector
from app.onnx_export.errors import ExportError
from app.onnx_export.faces import Channels, Normalisation, align_folder
from app.onnx_export.pixels import export_pixels
from app.onnx_export.precision import Precision
from app.onnx_export.recogniser import Options, Source, export_recogniser, read_onnx
from app.onnx_export.tflite import export_tflite

# Of pixels from 0 to 255, RGB, as torchvision normalises them.
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Published = Annotated[Path, typer.Argument(help="The published network.")]
Out = Annotated[Path, typer.Argument(help="The ONNX file to write.")]


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
    bool, typer.Option(help="Answer vectors of length 1; their length tells no quality then.")
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
def torch(
    source: Published,
    out: Out,
    *,
    faces: Photos,
    architecture: Annotated[
        str, typer.Option(help="A name, module:function of your own, or auto.")
    ] = "auto",
    size: Annotated[int, typer.Option(help="Side of the faces it takes, pixels.")] = 112,
    mean: Mean = "127.5",
    std: Std = "127.5",
    rgb: Rgb = True,
    opset: Opset = None,
    batch: Batch = None,
    pixels: Pixels = False,
    unit: Unit = False,
    precision: PrecisionOption = Precision.FP32,
    calibration: Calibration = None,
    minimum_cosine: Minimum = None,
    evaluate: Evaluate = None,
) -> None:
    """Convert a PyTorch checkpoint of a recogniser (needs PyTorch: `make torch`)."""
    with _failures_on_stderr():
        # PyTorch is heavy, and no other command needs it.
        from app.onnx_export.torch_source import read_checkpoint  # noqa: PLC0415

        options = Options(pixels, unit, precision, batch, opset, minimum_cosine)
        given = Normalisation(_channels(mean, "mean"), _channels(std, "std"), rgb)
        network = read_checkpoint(source, architecture, size, given, opset)
        _export(
            network,
            out,
            faces=faces,
            options=options,
            calibration=calibration,
            pairs=evaluate,
        )


@app.command()
def recogniser(
    source: Published,
    out: Out,
    *,
    faces: Photos,
    mean: Mean = "127.5",
    std: Std = "127.5",
    rgb: Rgb = True,
    opset: Opset = None,
    batch: Batch = None,
    pixels: Pixels = False,
    unit: Unit = False,
    precision: PrecisionOption = Precision.FP32,
    calibration: Calibration = None,
    minimum_cosine: Minimum = None,
    evaluate: Evaluate = None,
) -> None:
    """Make another variant of an ONNX recogniser: precision, input, output, batch."""
    with _failures_on_stderr():
        options = Options(pixels, unit, precision, batch, opset, minimum_cosine)
        given = Normalisation(_channels(mean, "mean"), _channels(std, "std"), rgb)
        _export(
            read_onnx(source, given),
            out,
            faces=faces,
            options=options,
            calibration=calibration,
            pairs=evaluate,
        )


def _export(
    source: Source,
    out: Path,
    *,
    faces: Path,
    options: Options,
    calibration: Path | None,
    pairs: Path | None,
) -> None:
    photos = align_folder(faces, source.size)
    counted = align_folder(calibration, source.size) if calibration else None
    found = export_recogniser(source, out, photos, options, counted)
    print(
        f"{out}: sha256 {found.sha256}; {found.agreement.faces} faces, lowest cosine to the source "
        f"{found.agreement.minimum_cosine:.9f}, length changed by at most "
        f"{found.agreement.maximum_length_change:.1e}"
    )
    if found.kept:
        print(f"kept in float32: {', '.join(found.kept)}")
    if pairs is None:
        return
    for name, accuracy in compare(source, out, pairs):
        print(
            f"{name}: {accuracy.pairs} pairs, accuracy {accuracy.accuracy:.4%}, equal error rate "
            f"{accuracy.equal_error_rate:.4%}"
        )


def _channels(text: str, which: str) -> Channels:
    """A number, or one a channel."""
    if text == "imagenet":
        return IMAGENET[which]
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    match values:
        case [one]:
            return one
        case [first, second, third]:
            return first, second, third
    raise ExportError(f"--{which} is a number, three with commas between, or imagenet: {text}")


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
        print(
            f"{out}: sha256 {sha256(out)}; {found.faces} faces, lowest cosine to the source "
            f"{found.minimum_cosine:.9f}, length changed by at most "
            f"{found.maximum_length_change:.1e}"
        )


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
