"""What corrected landmarks and mirror images bring the default recogniser: error rates and time.

    python benchmarks/landmarks.py embed CACHE --data ../shared/data      # minutes; once
    python benchmarks/landmarks.py rates CACHE --half developers
    python benchmarks/landmarks.py time --data ../shared/data

LFW's people are halved by a digest of their name. Of a half, everybody with two photos or more is
enrolled with one, chosen at random CHOICES times; the other photos are mated probes, people with
one photo are strangers. TPIR is the share of mated probes whose person is first and at the
threshold that one stranger in a hundred reaches; the mean over the choices, and of the difference
to the first row a 95 % interval by bootstrap over people, of both kinds, paired. FNMR is the share
of mated comparisons below the threshold of a FMR of 1e-4 (all comparisons of different people),
each person counting once. Scores are cosines. CACHE holds biometric data.

`time` analyses photos of one face by all ways in turn, on one thread: medians of the processor's
time, and of its ratio to the first way.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from degraded_faces import is_development
from numpy.typing import NDArray
from stages import LFW_PHOTO, PORTRAIT

from app.decision.calibrations import pack_orientation
from app.decision.face_selection import FaceSelection, selector_of
from app.faces.embed import Recogniser, normalise
from app.faces.images import align_faces
from app.faces.landmarks import LandmarkRefiner
from app.faces.loading import build_pipeline
from app.faces.pipeline import run_to_completion
from app.imaging import ImageLimits
from app.index.port import PRECISION
from app.inference.pack_spec import LandmarkSpec, ModelPack
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.lab.evaluation.labels import LabelNoise, read_label_noise
from app.settings import Device
from app.types import FloatArray, Image

CHOICES, BOOTSTRAPS = 20, 1000
ROUNDS = 100
TARGET_FPIR, TARGET_FMR = 0.01, 1e-4
NOISE = Path(__file__).parent / "lfw_label_noise.csv"
# Landmarks: the detector's, and corrected; each with the crop and with its mirror image.
KINDS = ("detector", "corrected")


def main() -> None:
    options = _arguments()
    {"embed": embed, "rates": rates, "time": times}[options.command](options)


# --- embeddings ------------------------------------------------------------------------------


def embed(options: argparse.Namespace) -> None:
    """Write CACHE/faces.npz: the answers to each photo's central face, cut out in all ways."""
    options.cache.mkdir(parents=True, exist_ok=True)
    folder = options.data / "lfw" / "images"
    photos = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.jpg"))
    pack = load_pack("default")
    plain = _changed(pack, mirror=False, landmarks=None)
    landmarks = _detected(plain, folder, photos, options.cache / "landmarks.npy")
    refiner = LandmarkRefiner(*_landmark_network(pack, options.landmarks))
    recogniser = Recogniser(OnnxModel(plain.recogniser_path, Device.CPU), plain.recogniser)
    answers: dict[str, list[FloatArray]] = {
        kind + side: [] for kind in KINDS for side in ("", "_mirrored")
    }
    for photo, points in zip(photos, landmarks, strict=True):
        image = np.asarray(cv2.imread(str(folder / photo)), np.uint8)
        both = np.stack([points, refiner.refine(image, points[np.newaxis])[0]])
        for kind, crop in zip(KINDS, align_faces(image, both), strict=True):
            for side, shown in (("", crop), ("_mirrored", crop[:, ::-1])):
                answers[kind + side].append(_answer(recogniser, np.ascontiguousarray(shown)))
    np.savez(
        options.cache / "faces.npz",
        photos=np.array(photos),
        **{name: np.concatenate(rows) for name, rows in answers.items()},
    )


def _changed(pack: ModelPack, *, mirror: bool, landmarks: LandmarkSpec | None) -> ModelPack:
    recogniser = pack.recogniser.model_copy(update={"mirror": mirror})
    return pack.model_copy(update={"landmarks": landmarks, "recogniser": recogniser})


def _detected(pack: ModelPack, folder: Path, photos: list[str], kept: Path) -> FloatArray:
    """The detector's landmarks (n, 5, 2) of each photo's central face."""
    if kept.exists():
        return np.asarray(np.load(kept), np.float32)
    limits = pack_orientation(load_pack("default-1.0"), PRECISION)
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits(), orientation=limits)
    central = selector_of(FaceSelection.CENTRE)
    found = []
    for photo in photos:
        data = (folder / photo).read_bytes()
        steps = pipeline.steps(data, max_faces=100, embed=False, selector=central)
        found.append(run_to_completion(steps).faces[0].landmarks)
    pipeline.close()
    np.save(kept, np.stack(found))
    return np.stack(found)


def _landmark_network(pack: ModelPack, given: Path | None) -> tuple[OnnxModel, LandmarkSpec]:
    if given is not None:
        spec = LandmarkSpec(file=given.name, sha256="0" * 64)
        return OnnxModel(given, Device.CPU), spec
    if pack.landmarks is None:
        raise SystemExit("The default pack corrects no landmarks: give --landmarks.")
    return OnnxModel(pack.path(pack.landmarks), Device.CPU), pack.landmarks


def _answer(recogniser: Recogniser, crop: Image) -> FloatArray:
    """The network's vector (1, d) with its length."""
    vectors, lengths = recogniser.embed(crop[np.newaxis])
    return vectors * lengths[:, np.newaxis]


# --- error rates -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class People:
    """Whose the faces are (n,), numbered; who is searched for as a stranger (people,)."""

    persons: NDArray[np.intp]
    enrolled: NDArray[np.intp]
    strangers: NDArray[np.intp]
    never_compared: frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Found:
    """What the searches of all choices found. `own` (choices, faces): the score of a probe's own
    person, -1 where that is not first, NaN for faces that are no probes; `highest` (choices,
    strangers)."""

    own: FloatArray
    highest: FloatArray


def rates(options: argparse.Namespace) -> None:
    """Print a row for each way to make templates and probes."""
    cache = dict(np.load(options.cache / "faces.npz"))
    photos = cache.pop("photos")
    noise = read_label_noise(NOISE)
    wanted = options.half == "developers"
    rows = np.array([
        is_development(photo.split("/")[0]) is wanted and photo not in noise.images
        for photo in photos
    ])  # fmt: skip
    people = _people([photo.split("/")[0] for photo in photos[rows]], noise)
    print(
        f"{rows.sum()} photos, {len(people.enrolled)} enrolled, {len(people.strangers)} strangers"
    )
    print("| landmarks | mirror image | TPIR at FPIR 1 % | difference | FNMR at FMR 1e-4 |")
    print("|---|---|---|---|---|")
    first: Found | None = None
    for name, templates, probes in _ways({name: answers[rows] for name, answers in cache.items()}):
        found = _search(people, templates, probes)
        first = first or found
        print(
            f"| {name} | {100 * _tpir(found, people, None):.2f} | "
            f"{_difference(first, found, people)} | "
            f"{100 * _fnmr(people, templates, probes):.2f} |",
            flush=True,
        )


def _ways(answers: dict[str, FloatArray]) -> Iterator[tuple[str, FloatArray, FloatArray]]:
    """Landmarks and mirror images as a row says them, templates (n, d) and probes (n, d)."""
    means = {}
    for kind in KINDS:
        one, other = answers[kind], answers[f"{kind}_mirrored"]
        alone, means[kind] = normalise(one)[0], normalise((one + other) / 2)[0]
        yield f"{kind} | no", alone, alone
        yield f"{kind} | of the enrolled only", means[kind], alone
        yield f"{kind} | of both", means[kind], means[kind]
    # What `models migrate` makes of faces that were kept aligned by the detector's landmarks.
    yield "corrected for probes alone | of both", means["detector"], means["corrected"]


def _people(names: list[str], noise: LabelNoise) -> People:
    known, persons, counts = np.unique(names, return_inverse=True, return_counts=True)
    number = {str(name): i for i, name in enumerate(known)}
    pairs = {(number[a], number[b]) for a, b in noise.same_people if {a, b} <= number.keys()}
    usable = ~np.isin(np.arange(len(known)), [b for _, b in pairs])
    return People(
        persons,
        np.flatnonzero(usable & (counts > 1)),
        np.flatnonzero(usable & (counts == 1)),
        frozenset(pairs),
    )


def _search(people: People, templates: FloatArray, probes: FloatArray) -> Found:
    generator = np.random.default_rng(0)
    strangers = np.isin(people.persons, people.strangers)
    own, highest = [], []
    for _ in range(CHOICES):
        chosen = np.array([
            generator.choice(np.flatnonzero(people.persons == person))
            for person in people.enrolled
        ])  # fmt: skip
        scores = probes @ templates[chosen].T
        highest.append(scores[strangers].max(axis=1))
        place = np.searchsorted(people.enrolled, people.persons)
        mated = np.isin(people.persons, people.enrolled)
        mated[chosen] = False
        mine = scores[np.arange(len(scores)), np.minimum(place, len(chosen) - 1)]
        first = mine >= scores.max(axis=1)
        own.append(np.where(mated, np.where(first, mine, -1), np.nan))
    return Found(np.stack(own), np.stack(highest))


def _tpir(found: Found, people: People, weights: FloatArray | None) -> float:
    """With `weights` (people,) everybody counts so often."""
    of = np.ones(people.persons.max() + 1) if weights is None else weights
    strangers, probes = of[people.strangers], of[people.persons]
    shares = []
    for own, highest in zip(found.own, found.highest, strict=True):
        order = np.argsort(-highest)
        below = np.cumsum(strangers[order]) > TARGET_FPIR * strangers.sum()
        threshold = highest[order][np.argmax(below)]
        mated = ~np.isnan(own)
        shares.append((probes[mated] * (own[mated] > threshold)).sum() / probes[mated].sum())
    return float(np.mean(shares))


def _difference(first: Found, found: Found, people: People) -> str:
    if first is found:
        return "–"
    generator = np.random.default_rng(1)
    count = people.persons.max() + 1
    drawn = [
        _tpir(found, people, weights) - _tpir(first, people, weights)
        for weights in _resampled(people, count, generator)
    ]
    low, high = 100 * np.quantile(drawn, [0.025, 0.975])
    value = 100 * (_tpir(found, people, None) - _tpir(first, people, None))
    return f"{value:+.2f} ({low:+.2f} … {high:+.2f})"


def _resampled(people: People, count: int, generator: np.random.Generator) -> Iterator[FloatArray]:
    """How often each person was drawn, enrolled people and strangers apart."""
    for _ in range(BOOTSTRAPS):
        weights = np.zeros(count, np.float32)
        for group in (people.enrolled, people.strangers):
            drawn, times = np.unique(generator.choice(group, len(group)), return_counts=True)
            weights[drawn] = times
        yield weights


def _fnmr(people: People, templates: FloatArray, probes: FloatArray) -> float:
    scores = probes @ templates.T
    same = people.persons[:, np.newaxis] == people.persons
    compared = ~np.eye(len(scores), dtype=np.bool_)
    for a, b in people.never_compared:
        both = np.isin(people.persons, [a, b])
        compared[np.ix_(both, both)] = False
    others = scores[~same & compared]
    threshold = np.partition(others, -int(TARGET_FMR * len(others)) - 1)[
        -int(TARGET_FMR * len(others)) - 1
    ]
    missed, mated = scores <= threshold, same & compared
    misses, total = (missed & mated).sum(axis=1), mated.sum(axis=1)
    shares = [
        misses[mine].sum() / total[mine].sum()
        for person in people.enrolled
        if total[mine := people.persons == person].sum()
    ]
    return float(np.mean(shares))


# --- time ------------------------------------------------------------------------------------


def times(options: argparse.Namespace) -> None:
    """Print a row for each photo and way."""
    cv2.setNumThreads(1)
    pack = load_pack("default")
    ways = {
        "detector | no": _changed(pack, mirror=False, landmarks=None),
        "corrected | no": _changed(pack, mirror=False, landmarks=pack.landmarks),
        "corrected | of both": _changed(pack, mirror=True, landmarks=pack.landmarks),
    }
    pipelines = {name: build_pipeline(one, Device.CPU, ImageLimits()) for name, one in ways.items()}
    print("| photo | landmarks | mirror image | ms | ratio |")
    print("|---|---|---|---|---|")
    photos = {"portrait, 910 x 1137": PORTRAIT, "LFW, 250 x 250": options.data / LFW_PHOTO}
    for photo, file in photos.items():
        data = file.read_bytes()
        spent = np.empty((ROUNDS, len(pipelines)))
        for row in spent:
            for place, pipeline in enumerate(pipelines.values()):
                started = time.thread_time()
                pipeline.analyse(data, max_faces=1)
                row[place] = time.thread_time() - started
        milliseconds = 1e3 * np.median(spent, axis=0)
        ratios = np.median(spent / spent[:, :1], axis=0)
        for name, took, ratio in zip(pipelines, milliseconds, ratios, strict=True):
            print(f"| {photo} | {name} | {took:.1f} | {ratio:.2f} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Corrected landmarks and mirror images.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("embed")
    made.add_argument("--landmarks", type=Path, help="another ONet than the default pack's")
    shown = commands.add_parser("rates")
    shown.add_argument("--half", choices=("developers", "held-out"), default="held-out")
    timed = commands.add_parser("time")
    for command in (made, shown):
        command.add_argument("cache", type=Path)
    for command in (made, timed):
        command.add_argument("--data", type=Path, default=Path("../shared/data"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
