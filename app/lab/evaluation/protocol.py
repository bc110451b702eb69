"""What an evaluation measures, how its photos are analysed, which face is used, and how failures
count.

A photo in which the pipeline finds no usable face is a *failure to enroll* (ISO/IEC 19795-1). It
never ends an evaluation: its comparisons get the lowest similarity there is, so that a mated pair
counts as a false non-match."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from app.decision.calibration import Calibration
from app.decision.domain import SharedDirection
from app.decision.face_selection import FaceSelection, select_face, selector_of
from app.decision.pair_lifts import PairLift
from app.decision.policy import CollectionPolicy
from app.errors import FaceError, ImageError, ImageTooLarge, UnreadableImage
from app.faces.orientation import OrientationLimits
from app.faces.pipeline import FacePipeline, run_to_completion
from app.index.comparator import COSINE, Comparator
from app.inference.machine import usable_cores
from app.inference.pack_spec import ModelPack
from app.lab.evaluation.cache import PhotoCache
from app.lab.evaluation.figures import PhotoProblem
from app.lab.evaluation.labels import EvaluationError, LabelledPairs, LabelledPeople, LabelNoise
from app.lab.evaluation.metrics import FOLDS, FaceMatches, Similarities, match_faces
from app.locks import new_lock
from app.settings import MAX_PHOTO_BYTES
from app.types import AnalysedImage, Face, FloatArray, Image

FAILED_SIMILARITY = -1.0
# Crowded photos have hundreds of faces, and none of them may be lost to a limit here.
MAX_FACES = 10_000

Tick = Callable[[], None]
T = TypeVar("T")


class Analyser:
    """The service's own pipeline over files, with a memory. Thread-safe."""

    def __init__(self, pipeline: FacePipeline, cache: PhotoCache | None = None) -> None:
        self._pipeline = pipeline
        self._cache = cache
        self._lock = new_lock("evaluation.figures")
        self.cached = 0
        self.stages_ms: dict[str, list[float]] = {}

    def analyse(self, data: bytes, *, embed: bool = True) -> AnalysedImage:
        """Analyse one encoded photo. Raises the ImageError family."""
        key, kind = hashlib.sha256(data).hexdigest(), "embed" if embed else "detect"
        known = self._cache.get(key, kind) if self._cache else None
        if known is not None:
            with self._lock:
                self.cached += 1
            return known
        image = self._pipeline.analyse(data, max_faces=MAX_FACES, embed=embed)
        with self._lock:
            for stage, spent in image.timings_ms.items():
                self.stages_ms.setdefault(stage, []).append(spent)
        if self._cache:
            self._cache.put(key, kind, image)
        return image

    def aligned(self, data: bytes, selection: FaceSelection) -> Image:
        """The aligned face (size, size, 3) that counts in one encoded photo. Raises the ImageError
        family, NoFace or SeveralFaces."""
        steps = self._pipeline.steps(
            data, max_faces=MAX_FACES, embed=False, crops=True, selector=selector_of(selection)
        )
        crop = run_to_completion(steps).faces[0].crop
        assert crop is not None, "the pipeline was asked to keep it"
        return crop

    def embed_aligned(self, crops: Image) -> FloatArray:
        """The embeddings (n, d) of aligned faces (n, size, size, 3)."""
        return self._pipeline.embed_aligned(crops)

    def analyse_turned(self, image: Image, limits: OrientationLimits) -> AnalysedImage:
        """Analyse a decoded photo by other limits than the pipeline's; nothing is remembered."""
        return self._pipeline.analyse_image(image, max_faces=MAX_FACES, orientation=limits)


@dataclass(frozen=True, slots=True)
class EnrolledPhotos:
    """The face that counts of every photo that has one, the photos that failed, and the digest
    of every file that could be read."""

    faces: Mapping[str, Face]
    failures: tuple[PhotoProblem, ...]
    digests: Mapping[str, str]


def check_pairs(pairs: LabelledPairs) -> None:
    """Raise EvaluationError unless there are enough pairs of both kinds for ten folds."""
    mated = int(pairs.same.sum())
    if min(mated, len(pairs) - mated) < FOLDS:
        raise EvaluationError(
            f"{mated} mated and {len(pairs) - mated} non-mated pairs are too few: {FOLDS}-fold "
            f"accuracy needs at least {FOLDS} of each."
        )


def check_photos(folder: Path, names: Sequence[str]) -> None:
    """Raise EvaluationError unless all photos exist: a wrong folder is no failure to enroll."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise EvaluationError(
            f"{len(missing)} of {len(names)} photos are not below {folder}, for example "
            f"{missing[0]}; name the folder they lie in with --images."
        )


def enrol_photos(
    analyser: Analyser,
    folder: Path,
    names: Sequence[str],
    selection: FaceSelection = FaceSelection.CENTRE,
    tick: Tick = lambda: None,
    *,
    change: Callable[[bytes], bytes] = lambda photo: photo,
) -> EnrolledPhotos:
    """Embed the face that counts of each photo, after `change` to its bytes; `tick` is called after
    each.

    The default suits LFW, whose photos are cropped around the named person, bystanders or not.
    """
    digests: dict[str, str] = {}

    def enroll(name: str) -> Face | PhotoProblem:
        try:
            data = read_photo(folder / name)
            digests[name] = hashlib.sha256(data).hexdigest()
            return select_face(analyser.analyse(change(data)), selection)
        except (ImageError, FaceError) as error:
            return PhotoProblem(name, error.code, error.detail)

    outcomes = in_threads(enroll, names, tick)
    return EnrolledPhotos(
        {name: one for name, one in zip(names, outcomes, strict=True) if isinstance(one, Face)},
        tuple(one for one in outcomes if isinstance(one, PhotoProblem)),
        digests,
    )


def pair_similarities(
    pairs: LabelledPairs, photos: EnrolledPhotos, comparator: Comparator = COSINE
) -> Similarities:
    """Comparison score of each pair (n,) float64; -1 where a photo failed to enroll."""
    similarities = np.full(len(pairs), FAILED_SIMILARITY)
    for i, names in enumerate(zip(pairs.images_a, pairs.images_b, strict=True)):
        a, b = (_embedding(photos.faces.get(name)) for name in names)
        if a is not None and b is not None:
            similarities[i] = comparator.score(a, b)
    return similarities


def _embedding(face: Face | None) -> FloatArray | None:
    return None if face is None else face.embedding


@dataclass(frozen=True, slots=True)
class DetectedPhotos:
    """Detections against labels for every photo; one that cannot be read has found nothing."""

    matches: tuple[FaceMatches, ...]
    failures: tuple[PhotoProblem, ...]


def detect_photos(
    analyser: Analyser,
    folder: Path,
    labelled: Mapping[str, FloatArray],
    tick: Tick = lambda: None,
) -> DetectedPhotos:
    """Detect the faces of each photo and match them to its labelled boxes (n, 4)."""

    def detect(name: str) -> AnalysedImage | PhotoProblem:
        try:
            return analyser.analyse(read_photo(folder / name), embed=False)
        except ImageError as error:
            return PhotoProblem(name, error.code, error.detail)

    outcomes = in_threads(detect, list(labelled), tick)
    matches = [
        match_faces(*_boxes(outcome), boxes)
        for outcome, boxes in zip(outcomes, labelled.values(), strict=True)
    ]
    return DetectedPhotos(tuple(matches), tuple(o for o in outcomes if isinstance(o, PhotoProblem)))


def read_photo(path: Path) -> bytes:
    """The bytes of a file. Raises UnreadableImage, and ImageTooLarge for a file that is larger than
    any setting allows a photo to be."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_PHOTO_BYTES:
                raise ImageTooLarge(f"The file has more than {MAX_PHOTO_BYTES:,} bytes.")
            return file.read(MAX_PHOTO_BYTES + 1)
    except OSError as error:
        raise UnreadableImage(f"The file cannot be read: {error.strerror}.") from error


def _boxes(outcome: AnalysedImage | PhotoProblem) -> tuple[FloatArray, FloatArray]:
    """Boxes (n, 4) and scores (n,)."""
    faces = () if isinstance(outcome, PhotoProblem) else outcome.faces
    boxes = np.array([face.box for face in faces], dtype=np.float32).reshape(-1, 4)
    return boxes, np.array([face.score for face in faces], dtype=np.float32)


def in_threads(work: Callable[[str], T], names: Sequence[str], tick: Tick) -> list[T]:
    """Do the work for every name, a thread per core: networks use one thread each."""
    outcomes: list[T] = []
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="evaluate") as pool:
        try:
            for outcome in pool.map(work, names):
                outcomes.append(outcome)
                tick()
        except BaseException:  # Ctrl-C, above all: thousands of photos may still wait
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return outcomes


DEFAULT_POLICY = CollectionPolicy()

Progress = Callable[[str, int], AbstractContextManager[Tick]]


@dataclass(frozen=True, slots=True)
class PairsSource:
    """Labelled pairs and the folder their photos are below."""

    path: Path
    folder: Path
    pairs: LabelledPairs


@dataclass(frozen=True, slots=True)
class BoxesSource:
    """Photos with labelled boxes (n, 4), and the folder they are below."""

    path: Path
    folder: Path
    boxes: dict[str, FloatArray]


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What to measure, on what, and how. `attributes`: group of each person, by attribute.
    `fit_direction`: find again the direction that degraded faces share, and compare by it;
    otherwise faces are compared as the pack's calibration says. `policy`: the setting of the
    collections that the figures are wanted for. `fit_orientation`: whether the calibration gets
    limits for turned photos, which takes time."""

    people: LabelledPeople | None = None
    pairs: PairsSource | None = None
    boxes: BoxesSource | None = None
    noise: LabelNoise = field(default_factory=LabelNoise)
    attributes: dict[str, dict[str, str]] = field(default_factory=dict)
    selection: FaceSelection = FaceSelection.CENTRE
    seed: int = 0
    fit_direction: bool = False
    policy: CollectionPolicy = DEFAULT_POLICY
    fit_orientation: bool = False


@dataclass(frozen=True, slots=True)
class Bench:
    """What measures: the pack, its pipeline, a way to show progress, a clock, the pack's
    calibration, the direction by which faces are compared, and the lift for two degraded faces."""

    pack: ModelPack
    analyser: Analyser
    progress: Progress
    clock: Callable[[], datetime]
    shipped: Calibration | None
    shared: SharedDirection | None = None
    degraded: PairLift | None = None

    @property
    def comparator(self) -> Comparator:
        return COSINE if self.shared is None else self.shared.comparator


def folder_name(folder: Path) -> str:
    """The folder with the one it is in: "images" alone says little."""
    return "/".join(folder.resolve().parts[-2:])
