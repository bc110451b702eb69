"""An evaluation as one HTML file that needs nothing else: no script, no network, no fonts."""

import base64
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as PillowImage

from app.errors import ImageError
from app.imaging import ImageLimits, decode_image
from app.lab.evaluation.charts import (
    comparison_det,
    comparison_roc,
    error_versus_discard,
    identification_det,
    predicted_fpir,
    score_histogram,
)
from app.lab.evaluation.figure_rows import FigureRow, document_of
from app.lab.evaluation.metrics import FOLDS
from app.lab.evaluation.tables import tables_of
from app.lab.evaluation.texts import (
    interval_text,
    per_cent,
    rate_text,
    similarity_text,
    target_text,
)

SHOWN_PROBLEMS = 200
_TEMPLATES = Path(__file__).parent / "templates"

# Operating points of the summary: what a verification and a search are usually asked for.
_HEADLINE_FMR = 1e-4
_HEADLINE_FPIR = 1e-2

# A person with one photo is no failure, and a collection of celebrities has thousands of them.
_NO_FAILURE = "one_photo"

MAX_SIDE_PX = 112
_JPEG_QUALITY = 80

# Photos of an evaluation are on the operator's own disk and may be larger than a client may send.
_LIMITS = ImageLimits(max_bytes=64 * 1024 * 1024, max_pixels=100_000_000)


# What `document_of` makes of the rows of an evaluation.
Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Headline:
    """One figure of the summary: its name, its value and what it was measured on."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class ProblemList:
    """Problems of one source: how many of each code, and those that are shown of `count`."""

    source: str
    codes: tuple[tuple[str, int], ...]
    shown: tuple[Document, ...]
    count: int


def render_html(rows: Sequence[FigureRow], read_photo: Callable[[str], bytes | None]) -> str:
    """The report. `read_photo` gives the bytes of a photo by its name in the figures, or None.

    Only photos of the worst pairs are read, once each; what `read_photo` raises is passed on. With
    thumbnails the report is personal data, and says so.
    """
    evaluation = document_of(rows)
    text = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            evaluation=evaluation,
            headlines=_headlines(evaluation),
            charts=_charts(evaluation),
            thumbnails=_thumbnails(evaluation, read_photo),
            problems=_problem_lists(evaluation),
            tables=tables_of(rows),
        )
    )
    # Names of files need not be valid Unicode; the report is written nevertheless.
    return text.encode("utf-8", "replace").decode("utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(similarity=similarity_text)
    return environment


def _headlines(evaluation: Document) -> list[Headline]:
    found = [*_pairs_headlines(evaluation["pairs"]), *_people_headlines(evaluation)]
    predictions = evaluation["predictions"]
    if predictions:
        tested = [p for p in predictions if p["held_out"]] or predictions
        kept = sum(prediction["kept"] for prediction in tested)
        note = "promised rates within the simulation's interval"
        found.append(Headline("FPIR kept", f"{kept} of {len(tested)}", note))
    detection = evaluation["detection"]
    if detection is not None and detection["recall"]:
        size = detection["recall"][0]
        note = f"{interval_text(size['interval'])}, {size['faces']:,} faces of at least "
        note += f"{size['min_side']:g} px"
        found.append(Headline("Detection recall", rate_text(size["interval"]), note))
    return found


def _pairs_headlines(pairs: Document | None) -> list[Headline]:
    if pairs is None:
        return []
    mean, std = pairs["accuracy"]["mean"], pairs["accuracy"]["std"]
    # The mean of ten folds is known better than one of them, by the root of ten.
    mean_error = std / math.sqrt(FOLDS)
    accuracy = f"{per_cent(mean, mean_error)} ± {per_cent(std, mean_error)} %"
    return [
        Headline(f"Accuracy on {pairs['name']}", accuracy, f"{pairs['pairs']:,} pairs, ten folds")
    ]


def _people_headlines(evaluation: Document) -> list[Headline]:
    found = []
    comparisons = evaluation["comparisons"]
    if comparisons is not None:
        equal, count = comparisons["eer"]["interval"], comparisons["mated_comparisons"]
        note = f"{interval_text(equal)}, {count:,} mated comparisons"
        found.append(Headline("Equal error rate", rate_text(equal), note))
        able = [point for point in comparisons["points"] if point["fnmr"] is not None]
        if able:
            point = min(able, key=lambda p: _distance(p["target_fmr"], _HEADLINE_FMR))
            name = f"FNMR at FMR {target_text(point['target_fmr'])}"
            found.append(Headline(name, rate_text(point["fnmr"]), interval_text(point["fnmr"])))
    if evaluation["identification"]:
        size = max(evaluation["identification"], key=lambda figures: figures["persons"])
        rank_one, persons = size["rank_one"], f"{size['persons']:,} persons enrolled"
        note = f"{interval_text(rank_one)}, {persons}"
        found.append(Headline("Rank-1 identification", rate_text(rank_one), note))
        if size["points"]:
            one = min(size["points"], key=lambda p: _distance(p["target_fpir"], _HEADLINE_FPIR))
            name = f"FNIR at FPIR {target_text(one['target_fpir'])}"
            note = f"{interval_text(one['fnir'])}, {persons}"
            found.append(Headline(name, rate_text(one["fnir"]), note))
    return found


def _distance(rate: float, wanted: float) -> float:
    return abs(math.log10(rate / wanted)) if rate > 0 else math.inf


def _charts(evaluation: Document) -> dict[str, str | None]:
    """The charts by the name that the template has for them; None where nothing can be drawn."""
    charts = {
        "identification": identification_det(evaluation["identification"]),
        "discard": error_versus_discard(evaluation["discard"]),
        "predictions": predicted_fpir(evaluation["predictions"]),
    }
    comparisons, pairs = evaluation["comparisons"], evaluation["pairs"]
    if comparisons is not None:
        threshold, name = comparisons["eer"]["threshold"], "threshold at the EER"
        if pairs is not None:
            threshold, name = pairs["at_threshold"]["threshold"], "the pack's threshold"
        charts["det"] = comparison_det(comparisons)
        charts["roc"] = comparison_roc(comparisons["roc"])
        charts["histogram"] = score_histogram(comparisons["histogram"], threshold, name)
    return charts


def _thumbnails(
    evaluation: Document, read_photo: Callable[[str], bytes | None]
) -> dict[str, str | None]:
    """Thumbnails of the worst pairs by the photo's name; None where it cannot be decoded."""
    found: dict[str, str | None] = {}
    for image in _images_of(evaluation["comparisons"]):
        if image not in found:
            photo = read_photo(image)
            found[image] = None if photo is None else thumbnail_uri(photo)
    return found


def _images_of(comparisons: Document | None) -> Iterable[str]:
    if comparisons is not None:
        for pair in [*comparisons["worst_mated"], *comparisons["worst_non_mated"]]:
            yield pair["image_a"]
            yield pair["image_b"]


def _problem_lists(evaluation: Document) -> list[ProblemList]:
    sources = [(data["name"], data["problems"]) for data in evaluation["data"]]
    detection = evaluation["detection"]
    if detection is not None:
        sources.append((detection["name"], detection["failures"]))
    lists, left = [], SHOWN_PROBLEMS
    for name, problems in sources:
        failures = [problem for problem in problems if problem["code"] != _NO_FAILURE]
        codes = tuple(sorted(Counter(problem["code"] for problem in problems).items()))
        if codes:
            lists.append(ProblemList(name, codes, tuple(failures[:left]), len(failures)))
            left -= min(left, len(failures))
    return lists


def thumbnail_uri(photo: bytes) -> str | None:
    """A photo as a JPEG of at most 112 pixels a side, in a `data:` URI.

    None where the bytes cannot be decoded. The thumbnail is upright, never larger than the photo,
    and encoded again: no place, time or other metadata of the photo gets into the report.
    """
    try:
        image = decode_image(photo, _LIMITS)
    except ImageError:
        return None
    picture = PillowImage.fromarray(np.ascontiguousarray(image[:, :, ::-1]))
    picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    written = io.BytesIO()
    picture.save(written, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode("ascii")
