"""`likeness evaluate`: the error rates of a pack on labelled photos."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.cli.console import clear_errors, err, out, read_settings
from app.decision.policy import FaceSelection
from app.evaluation.labels import read_faces, read_pairs
from app.evaluation.metrics import OperatingPoint
from app.evaluation.protocol import (
    Failure,
    check_pairs,
    check_photos,
    detect_photos,
    enrol_photos,
    pair_similarities,
)
from app.evaluation.report import DetectionReport, PairsReport, report_detection, report_pairs
from app.faces.pipeline import FacePipeline, build_pipeline
from app.imaging import ImageLimits
from app.inference.packs import ModelPack, load_pack

SHOWN_FAILURES = 10

PackOption = Annotated[
    str | None, typer.Option("--pack", help="Name or folder; default: LIKENESS_PACK.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]

evaluate_app = typer.Typer(
    help="Measure a model pack on labelled photos: verification pairs, face boxes.",
    no_args_is_help=True,
)


@evaluate_app.command("pairs")
def evaluate_pairs(
    pairs_csv: Annotated[
        Path, typer.Argument(metavar="PAIRS.csv", help="Lines of image_a,image_b,same (1 or 0).")
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the photos; default: images/ beside PAIRS.csv."),
    ] = None,
    pack: PackOption = None,
    face: Annotated[
        FaceSelection, typer.Option(help="Which face counts where a photo shows several.")
    ] = FaceSelection.CENTRE,
    as_json: JsonOption = False,
) -> None:
    """Verification: ten-fold accuracy, EER, TAR at fixed FAR, and the pack's own threshold."""
    with clear_errors():
        pairs = read_pairs(pairs_csv)
        check_pairs(pairs)
        folder = images or pairs_csv.parent / "images"
        check_photos(folder, pairs.photos)
        loaded, pipeline = _load(pack)
        with _progress("photos", len(pairs.photos)) as tick:
            enrolled = enrol_photos(pipeline, folder, pairs.photos, face, tick)
        similarities = pair_similarities(pairs, enrolled)
        report = report_pairs(pairs, similarities, enrolled.failures, loaded.decision.threshold)
    if as_json:
        _print_json(loaded, {**asdict(report), "face_selection": face.value})
    else:
        _print_pairs(loaded, report)


@evaluate_app.command("detection")
def evaluate_detection(
    faces_csv: Annotated[
        Path, typer.Argument(metavar="FACES.csv", help="Lines of image,x1,y1,x2,y2 in pixels.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of the photos; default: images/ beside FACES.csv."),
    ] = None,
    pack: PackOption = None,
    as_json: JsonOption = False,
) -> None:
    """Detection: recall of labelled faces by size, and detections on no labelled face."""
    with clear_errors():
        labelled = read_faces(faces_csv)
        folder = images or faces_csv.parent / "images"
        check_photos(folder, list(labelled))
        loaded, pipeline = _load(pack)
        with _progress("photos", len(labelled)) as tick:
            report = report_detection(detect_photos(pipeline, folder, labelled, tick))
    if as_json:
        _print_json(loaded, asdict(report))
    else:
        _print_detection(loaded, report)


def _load(pack: str | None) -> tuple[ModelPack, FacePipeline]:
    settings = read_settings()
    loaded = load_pack(pack or settings.pack)
    limits = ImageLimits(
        settings.max_image_bytes, settings.max_image_pixels, settings.max_image_side
    )
    return loaded, build_pipeline(loaded, settings.device, limits)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, so that standard output holds the figures alone."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _print_json(pack: ModelPack, report: dict[str, Any]) -> None:
    # What was measured comes first: figures without their pack mean nothing.
    model = {"pack": pack.name, "version": pack.version, "embedding_space": pack.embedding_space}
    typer.echo(json.dumps({"model": model, **report}, indent=2))


def _print_pairs(pack: ModelPack, report: PairsReport) -> None:
    accuracy, eer = report.accuracy, report.eer
    table = Table("figure", "value", "threshold", title=_title(pack))
    non_mated = report.pairs - report.mated
    table.add_row("pairs", f"{report.mated} mated, {non_mated} non-mated")
    table.add_row("photos", f"{report.photos}, {len(report.failures)} failed to enrol")
    table.add_row(
        "accuracy, 10 folds",
        f"{accuracy.mean:.4f} ± {accuracy.std:.4f}",
        f"{min(accuracy.thresholds):.3f}…{max(accuracy.thresholds):.3f}",
    )
    table.add_row("EER", f"{eer.rate:.4f}", f"{eer.threshold:.3f}")
    for point in report.at_far:
        table.add_row(f"TAR at FAR {point.far:g}", f"{point.tar:.4f}", f"{point.threshold:.3f}")
    own = report.at_threshold
    table.add_row("pack's threshold", _rates(own), f"{own.threshold:.3f}")
    out.print(table)
    _print_failures(report.failures)


def _rates(point: OperatingPoint) -> str:
    return f"FMR {point.fmr:.4f} ({point.false_matches} matches), FNMR {point.fnmr:.4f}"


def _print_detection(pack: ModelPack, report: DetectionReport) -> None:
    table = Table("figure", "value", "of", title=_title(pack))
    table.add_row("photos", str(report.photos), "")
    for size in report.recall:
        name = f"recall, shorter side ≥ {size.min_side:g} px" if size.min_side else "recall, all"
        table.add_row(name, f"{size.recall:.3f}", f"{size.found} of {size.faces}")
    table.add_row("on no labelled face", str(report.unmatched), f"{report.detections} detections")
    out.print(table)
    _print_failures(report.failures)


def _title(pack: ModelPack) -> str:
    return f"{pack.name} {pack.version} ({pack.embedding_space})"


def _print_failures(failures: Sequence[Failure]) -> None:
    for failure in failures[:SHOWN_FAILURES]:
        out.print(f"failed: {failure.image} ({failure.code})", markup=False, highlight=False)
    if len(failures) > SHOWN_FAILURES:
        out.print(f"… and {len(failures) - SHOWN_FAILURES} more; --json lists all.")
