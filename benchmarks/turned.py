"""Photos turned without EXIF orientation: who is found, before and after the search for the turn.

    python benchmarks/turned.py --pack default --data ../shared/data --people 200 --half held-out

LFW's people in the order of their names, every other one for developers, the rest held out. Of
each half, people with two photos are enrolled with the first, upright, and searched for with the
second; people with one photo are strangers. Both pipelines see each photo in turn, and their times
are CPU time of one thread, so that other work on the machine disturbs them little.
"""

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from app.decision.calibrations import pack_calibration, pack_orientation
from app.decision.face_selection import FaceSelection, select_face
from app.errors import FaceError
from app.faces.images import ROTATIONS, inverse, turned_detections, turned_image
from app.faces.loading import build_pipeline
from app.faces.orientation import OrientationLimits
from app.faces.pipeline import FacePipeline
from app.folders import find_photos
from app.imaging import ImageLimits, decode_image
from app.index.comparator import COSINE, Comparator
from app.index.port import PRECISION, GallerySize
from app.inference.packs import load_pack
from app.lab.evaluation.labels import read_faces
from app.lab.evaluation.metrics import match_faces, recall_by_size
from app.settings import Device
from app.types import AnalysedImage, Detections, Face, FloatArray, Image

TARGET_FPIR = 0.01
HALVES = ("developers", "held-out")
SIZES = (32, 16)
MIN_BAND = 64  # pixels: less of a photo without faces is not worth looking at
console = Console()


@dataclass(frozen=True, slots=True)
class Contender:
    """A pipeline, and the milliseconds that each photo took."""

    name: str
    pipeline: FacePipeline
    spent_ms: list[float] = field(default_factory=list)

    def analyse(self, image: Image) -> AnalysedImage:
        start = time.thread_time()
        found = self.pipeline.analyse_image(image, max_faces=10_000)
        self.spent_ms.append((time.thread_time() - start) * 1000)
        return found

    def timing(self) -> str:
        """Median and mean since the last call."""
        text = f"{np.median(self.spent_ms):.1f} / {np.mean(self.spent_ms):.1f}"
        self.spent_ms.clear()
        return text


@dataclass(frozen=True, slots=True)
class Setting:
    """How embeddings of so many numbers are compared, and from which similarity two match."""

    threshold: float
    comparator: Comparator
    dimension: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pack", default="default")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--half", choices=HALVES, default="held-out")
    parser.add_argument("--limits", type=float, nargs=2, metavar=("SCORE", "ROLL"))
    options = parser.parse_args()
    pack = load_pack(options.pack)
    limits = OrientationLimits(*options.limits) if options.limits else None
    limits = limits or pack_orientation(pack, PRECISION)
    if limits is None:
        parser.error("the pack has no limits for turned photos; give --limits")
    contenders = [
        Contender(name, build_pipeline(pack, Device.CPU, ImageLimits(), orientation=one))
        for name, one in (("before", None), ("after", limits))
    ]
    cv2.setNumThreads(1)
    console.print(f"{options.pack}, {options.half} half of LFW, {limits}")
    calibration = pack_calibration(pack.folder, pack.embedding_space, PRECISION)
    threshold, comparator = pack.decision.threshold, COSINE
    if calibration is not None:
        size = GallerySize(options.people, options.people)
        threshold = calibration.threshold_at(TARGET_FPIR, size)
        comparator = calibration.comparator
    setting = Setting(threshold, comparator, pack.recogniser.dimension)
    lfw(contenders, options, limits, setting)
    wider(contenders, options.data / "wider")


def read(path: Path) -> Image:
    return decode_image(path.read_bytes(), ImageLimits())


def both(contenders: Sequence[Contender], images: Iterable[Image]) -> list[list[AnalysedImage]]:
    """What each contender answers for each image; they go first in turn."""
    answers: list[list[AnalysedImage]] = [[] for _ in contenders]
    for number, image in enumerate(images):
        order = range(len(contenders))
        for one in order if number % 2 else reversed(order):
            answers[one].append(contenders[one].analyse(image))
    return answers


def lfw(
    contenders: Sequence[Contender],
    options: argparse.Namespace,
    limits: OrientationLimits,
    setting: Setting,
) -> None:
    people: dict[str, list[Path]] = {}
    for photo in find_photos(options.data / "lfw" / "images"):
        people.setdefault(photo.person_id, []).append(photo.path)
    ours = [people[name] for name in sorted(people)[HALVES.index(options.half) :: 2]]
    known = [photos for photos in ours if len(photos) > 1][: options.people]
    strangers = [photos for photos in ours if len(photos) == 1][: options.people]
    (enrolled,) = both(contenders[:1], (read(photos[0]) for photos in known))
    gallery = vectors_of(enrolled, setting.dimension)
    probes = [read(photos[1]) for photos in known] + [read(photos[0]) for photos in strangers]
    table = Table(
        "turned by", "", "TPIR", "FPIR", "set upright", "ms: median / mean",
        title=f"{len(known)} enrolled, {len(known)} mates, {len(strangers)} strangers",
    )  # fmt: skip
    for contender in contenders:
        contender.spent_ms.clear()
    for rotation in ROTATIONS:
        turned = [np.ascontiguousarray(turned_image(image, rotation)) for image in probes]
        for contender, images in zip(contenders, both(contenders, turned), strict=True):
            scores = setting.comparator.scores(vectors_of(images, setting.dimension), gallery)
            mates, others = scores[: len(known)], scores[len(known) :].max(axis=1)
            own = np.arange(len(known))
            right = (mates.argmax(axis=1) == own) & (mates[own, own] >= setting.threshold)
            upright = np.mean([rotation_of(image) == inverse(rotation) for image in images])
            table.add_row(
                str(rotation), contender.name, f"{right.mean():.1%}",
                f"{(others >= setting.threshold).mean():.1%}", f"{upright:.1%}", contender.timing(),
            )  # fmt: skip
            if rotation == 0 and contender is contenders[0]:
                again = sum(limits.doubt(first_look(image)) for image in images)
    console.print(table)
    console.print(f"upright photos looked at again: {again} of {len(probes)}")


def centre(image: AnalysedImage) -> Face | None:
    try:
        return select_face(image, FaceSelection.CENTRE)
    except FaceError:
        return None


def vectors_of(images: Sequence[AnalysedImage], dimension: int) -> FloatArray:
    """The embeddings that count (n, d); zeros, which resemble nobody, where there is no face."""
    vectors = np.zeros((len(images), dimension), np.float32)
    for vector, face in zip(vectors, map(centre, images), strict=True):
        if face is not None and face.embedding is not None:
            vector[:] = face.embedding
    return vectors


def rotation_of(image: AnalysedImage) -> int | None:
    face = centre(image)
    return None if face is None else face.rotation


def first_look(image: AnalysedImage) -> Detections:
    """The faces of a photo that was looked at once, best score first."""
    faces = sorted(image.faces, key=lambda face: -face.score)
    return Detections(
        np.array([face.box for face in faces]).reshape(-1, 4),
        np.array([face.score for face in faces]),
        np.array([face.landmarks for face in faces]).reshape(-1, 5, 2),
    )


def wider(contenders: Sequence[Contender], folder: Path) -> None:
    labelled = read_faces(folder / "faces.csv")
    photos = {name: read(folder / "images" / name) for name in labelled}
    table = Table("turned by", "", *(f">= {size} px" for size in SIZES), "unmatched", "turned",
                  "ms: median / mean", title=f"WIDER, {len(photos)} photos: recall")  # fmt: skip
    for rotation in ROTATIONS:
        turned = [np.ascontiguousarray(turned_image(one, rotation)) for one in photos.values()]
        for contender, images in zip(contenders, both(contenders, turned), strict=True):
            matches = []
            for (name, truth), image in zip(labelled.items(), images, strict=True):
                found = Detections(truth, np.ones(len(truth), np.float32), None)
                boxes = turned_detections(found, rotation, *photos[name].shape[:2]).boxes
                faces = np.array([face.box for face in image.faces]).reshape(-1, 4)
                matches.append(match_faces(faces, np.array([f.score for f in image.faces]), boxes))
            rates = (f"{size.recall:.1%}" for size in recall_by_size(matches, SIZES))
            other = sum(bool(image.faces) and image.faces[0].rotation > 0 for image in images)
            table.add_row(str(rotation), contender.name, *rates,
                          str(sum(one.unmatched for one in matches)), str(other),
                          contender.timing())  # fmt: skip
    console.print(table)
    bands = [
        band for name, truth in labelled.items() for band in without_faces(photos[name], truth)
    ]
    table = Table("", "with a face", "ms: median / mean", title=f"{len(bands)} bands without faces")
    for contender, images in zip(contenders, both(contenders, bands), strict=True):
        table.add_row(contender.name, str(sum(bool(image.faces) for image in images)),
                      contender.timing())  # fmt: skip
    console.print(table)


def without_faces(image: Image, boxes: FloatArray) -> Iterable[Image]:
    """The bands of a photo above and below all its labelled faces."""
    if len(boxes):
        top, bottom = int(boxes[:, 1].min()), int(boxes[:, 3].max()) + 1
        yield from (band for band in (image[:top], image[bottom:]) if len(band) >= MIN_BAND)


if __name__ == "__main__":
    main()
