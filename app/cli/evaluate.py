"""`likeness evaluate`: the error rates of a model pack on labelled photos."""

import csv
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.cli.console import err, out, read_settings, require_extra, warn
from app.cli.output import require_not_read, require_writable, write_public_file, writing
from app.decision.calibrations import pack_orientation
from app.decision.face_selection import FaceSelection
from app.decision.fitting import MIN_PERSONS
from app.decision.policy import CollectionPolicy
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.index.port import PRECISION
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.lab.evaluation.cache import PhotoCache
from app.lab.evaluation.figure_rows import FigureRow, document_of, rows_of, to_csv, to_json
from app.lab.evaluation.labels import (
    FACE_COLUMNS,
    PAIR_COLUMNS,
    EvaluationError,
    LabelNoise,
    lines_of,
    read_attributes,
    read_faces,
    read_label_noise,
    read_pairs,
    read_people,
)
from app.lab.evaluation.pipeline_digest import pipeline_digest
from app.lab.evaluation.protocol import (
    DEFAULT_POLICY,
    Analyser,
    BoxesSource,
    EvaluationPlan,
    PairsSource,
)
from app.lab.evaluation.run import EvaluationResult, evaluate, photo_reader
from app.lab.evaluation.tables import TITLES, FigureTable, tables_of

SHOWN_PROBLEMS = 10


def print_evaluation(rows: Sequence[FigureRow]) -> None:
    """The verdict, then every section that there is; the report has the curves and full lists."""
    document = document_of(rows)
    out.print(document["verdict"], style="bold", markup=False, highlight=False)
    section = ""
    for found in tables_of(rows):
        new = found.section != section
        section = found.section
        out.print(_table(found, TITLES[section] if new else None))
        if section == "data":
            _print_problems(document)


def _table(found: FigureTable, title: str | None) -> Table:
    if found.upright:
        ((name, cells),) = found.rows
        table = Table("figure", escape(name) or "value", title=title)
        for heading, cell in zip(found.headings, cells, strict=True):
            table.add_row(heading, escape(str(cell)))
        return table
    table = Table(*(["of"] if found.named else []), *found.headings, title=title)
    for name, cells in found.rows:
        first = [escape(name)] if found.named else []
        table.add_row(*first, *(escape(str(cell)) for cell in cells))
    return table


def _print_problems(document: dict[str, Any]) -> None:
    for data in document["data"]:
        shown = [problem for problem in data["problems"] if problem["code"] != "one_photo"]
        for problem in shown[:SHOWN_PROBLEMS]:
            out.print(f"  {problem['image']}: {problem['code']}", markup=False, highlight=False)
        if len(shown) > SHOWN_PROBLEMS:
            out.print(f"  … and {len(shown) - SHOWN_PROBLEMS} more; --json lists all.")


CACHE_FILE = "evaluation-cache.db"
REPORT_FILES = ("report.json", "report.csv", "report.html")


Sources = Annotated[
    list[Path],
    typer.Argument(
        help="A folder with one subfolder for each person; a CSV of pairs "
        "(image_a,image_b,same); a CSV of face boxes (image,x1,y1,x2,y2). At most one of each."
    ),
]
ImageFolder = Annotated[
    Path | None, typer.Option(help="Folder of a CSV's photos; default: images/ beside it.")
]
PackName = Annotated[str | None, typer.Option(help="Name or folder; default: LIKENESS_PACK.")]
FaceOption = Annotated[
    FaceSelection,
    typer.Option(help="Which face is used if a photo has several: only, largest or centre."),
]
LabelNoiseFile = Annotated[
    Path | None,
    typer.Option(
        help="CSV of known mistakes in the labels, with the columns image,person_a,person_b: a row "
        "has either the path of a photo within the folder, which is left out, or two folders of "
        "one person."
    ),
]
AttributesFile = Annotated[
    Path | None, typer.Option(help="CSV of groups (person,<attribute>,…): figures for each.")
]
TargetFpir = Annotated[
    float,
    typer.Option(
        help="Target FPIR of your collections; the report says whether it is kept.",
        min=1e-9,
        max=0.5,
    ),
]
OutputFolder = Annotated[
    Path | None, typer.Option(help="Folder for report.html, report.json and report.csv.")
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(help="Make a calibration from the folder of people, and write it to this file."),
]
UseCache = Annotated[
    bool,
    typer.Option(
        help="Store what is computed of photos (biometric data) in the data folder, for the next "
        "run."
    ),
]
ShowThumbnails = Annotated[bool, typer.Option(help="Show the worst pairs' photos in the report.")]
Seed = Annotated[int, typer.Option(help="Seed of the random galleries and halves.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]


def evaluate_pack(
    sources: Sources,
    *,
    images: ImageFolder = None,
    pack: PackName = None,
    face: FaceOption = FaceSelection.CENTRE,
    label_noise: LabelNoiseFile = None,
    attributes: AttributesFile = None,
    target_fpir: TargetFpir = DEFAULT_POLICY.target_fpir,
    output: OutputFolder = None,
    calibration: CalibrationFile = None,
    cache: UseCache = True,
    thumbnails: ShowThumbnails = True,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Verification, open-set identification, calibration and detection on labelled photos.

    Photos are analysed as the service does it. Figures for which the data is too small are left
    out; photos that cannot be used are counted and listed.
    """
    if output is not None:
        require_extra("lab", "The report of --output", "jinja2", "matplotlib")
    plan = read_plan(
        sources,
        images=images,
        label_noise=label_noise,
        attributes=attributes,
        face=face,
        seed=seed,
        fit_direction=calibration is not None,
        policy=CollectionPolicy(target_fpir=target_fpir),
        fit_orientation=calibration is not None,
    )
    inputs = (*sources, images, *(p.parent / "images" for p in sources), label_noise, attributes)
    if output is not None:
        for name in REPORT_FILES:
            require_not_read(output / name, inputs)
    if calibration is not None:
        require_writable(calibration)
        require_not_read(calibration, inputs)
        if plan.people is None or len(set(plan.people.persons)) < MIN_PERSONS:
            raise _too_few_people()
    result = _run(plan, pack, keep=cache)
    rows = list(rows_of(result.evaluation))
    if output is not None:
        read = photo_reader(result.folders) if thumbnails else _no_photo
        _write_report(rows, output, read)
    if calibration is not None:
        _write_calibration(result, calibration)
    if as_json:
        typer.echo(to_json(rows))
    else:
        print_evaluation(rows)
    for path in (output, calibration):
        if path is not None:
            err.print(f"Written: {path}", markup=False, highlight=False)


def read_plan(
    sources: list[Path],
    *,
    images: Path | None,
    label_noise: Path | None,
    attributes: Path | None,
    face: FaceSelection,
    seed: int,
    fit_direction: bool = False,
    policy: CollectionPolicy = DEFAULT_POLICY,
    fit_orientation: bool = False,
) -> EvaluationPlan:
    """The sources of the command line by their kind: folder, pairs or boxes. Raises
    EvaluationError."""
    people, pairs, boxes = None, None, None
    for path in sources:
        folder = images or path.parent / "images"
        kind = _kind(path)
        if kind == "people" and people is None:
            people = read_people(path)
        elif kind == "pairs" and pairs is None:
            pairs = PairsSource(path, folder, read_pairs(path))
        elif kind == "boxes" and boxes is None:
            boxes = BoxesSource(path, folder, read_faces(path))
        else:
            raise EvaluationError(f"{path} is a second source of {kind}; give one of each kind.")
    return EvaluationPlan(
        people,
        pairs,
        boxes,
        read_label_noise(label_noise) if label_noise else LabelNoise(),
        read_attributes(attributes) if attributes else {},
        face,
        seed,
        fit_direction,
        policy,
        fit_orientation,
    )


def _kind(path: Path) -> str:
    if path.is_dir():
        return "people"
    if not path.exists():
        raise EvaluationError(f"{path} does not exist; check the path.")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            columns = set(next(csv.reader(lines_of(file, path)), []))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise EvaluationError(f"{path} cannot be read: {reason}.") from error
    if columns >= set(PAIR_COLUMNS):
        return "pairs"
    if columns >= set(FACE_COLUMNS):
        return "boxes"
    raise EvaluationError(
        f"{path} is neither a folder of people nor a CSV whose first line is "
        f"{','.join(PAIR_COLUMNS)} or {','.join(FACE_COLUMNS)}."
    )


def _run(plan: EvaluationPlan, pack: str | None, *, keep: bool) -> EvaluationResult:
    with open_analyser(pack, keep=keep) as (loaded, analyser):
        return evaluate(plan, loaded, analyser, show_progress)


@contextmanager
def open_analyser(pack: str | None, *, keep: bool) -> Iterator[tuple[ModelPack, Analyser]]:
    """A pack, that of the settings for None, and what analyses photos with it; `keep`: with the
    data folder's cache. Raises PackError or DeviceError."""
    settings = read_settings()
    loaded = load_pack(pack or settings.pack, settings.installed_packs)
    limits = ImageLimits(
        settings.max_image_bytes, settings.max_image_pixels, settings.max_image_side
    )
    orientation = pack_orientation(loaded, PRECISION)
    pipeline = build_pipeline(loaded, settings.device, limits, orientation=orientation)
    if not keep:
        yield loaded, Analyser(pipeline)
        return
    digest = pipeline_digest(loaded, limits, orientation, pipeline.provider)
    store = PhotoCache(settings.data_dir / CACHE_FILE, digest, warn)
    try:
        yield loaded, Analyser(pipeline, store)
    finally:
        store.close()


@contextmanager
def show_progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on standard error, so that standard output holds the figures alone."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _no_photo(_name: str) -> bytes | None:
    return None


def _write_report(
    rows: Sequence[FigureRow], folder: Path, read_photo: Callable[[str], bytes | None]
) -> None:
    with _plotting_without_traces():
        # Imported here, because it loads a plotting library, which takes half a second.
        from app.lab.evaluation.html import render_html  # noqa: PLC0415

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        texts = (to_json(rows) + "\n", to_csv(rows), render_html(rows, read_photo))
        for name, text in zip(REPORT_FILES, texts, strict=True):
            (folder / name).write_text(text, encoding="utf-8", newline="")


@contextmanager
def _plotting_without_traces() -> Iterator[None]:
    """Keep matplotlib from writing files when it is imported: a list of fonts in the home folder,
    and fontconfig's caches, which its search for system fonts refreshes."""
    with tempfile.TemporaryDirectory(prefix="likeness-") as folder:
        ours = {"MPLCONFIGDIR": folder, "MPL_IGNORE_SYSTEM_FONTS": "1"}
        added = {name: value for name, value in ours.items() if name not in os.environ}
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                del os.environ[name]


def _too_few_people() -> EvaluationError:
    return EvaluationError(
        f"There are too few people for a calibration: it needs a folder of {MIN_PERSONS} people or "
        "more with usable photos."
    )


def _write_calibration(result: EvaluationResult, path: Path) -> None:
    if result.calibration is None:
        raise _too_few_people()
    text = result.calibration.model_dump_json(indent=1, by_alias=True)
    write_public_file(path, f"{text}\n".encode())
