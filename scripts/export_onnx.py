"""Makes the ONNX files of a model pack from published networks (needs the `export` extra).

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

from app.onnx_export.artefact import sha256
from app.onnx_export.detector import export_detector
from app.onnx_export.errors import ExportError
from app.onnx_export.faces import Normalisation
from app.onnx_export.pixels import PixelInput, export_pixels
from app.onnx_export.tflite import export_tflite

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Source = Annotated[Path, typer.Argument(help="The published network.")]
Out = Annotated[Path, typer.Argument(help="The ONNX file to write.")]


@app.command()
def tflite(
    source: Source,
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
def detector(source: Source, out: Out) -> None:
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
    source: Source,
    out: Out,
    mean: Annotated[float, typer.Option(help="What was subtracted from every pixel.")],
    std: Annotated[float, typer.Option(help="What every pixel was then divided by.")],
    rgb: Annotated[bool, typer.Option(help="The colour order the network was given.")] = True,
) -> None:
    """Let a network take uint8 BGR pixels, its normalisation folded into the graph."""
    with _failures_on_stderr():
        difference = export_pixels(source, out, PixelInput(mean, std, rgb))
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
