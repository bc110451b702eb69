"""What the size of the detector's look, and its form, bring: landmarks of large faces.

    python benchmarks/looks.py embed CACHE --data ../shared/data [--half held-out] [--form FILE]
    python benchmarks/looks.py rates CACHE
    python benchmarks/looks.py time --data ../shared/data [--form FILE]

`embed` enlarges LFW's photos three times, to 750 x 750, and embeds the central face, aligned by a
look at 320 and by one at 640 pixels; with `--form`, another form of the pack's detector (such as
one in 8-bit integers), by its look at 320, too. Of a half of the people up to three photos of each
who has several are taken, and 500 people with one. A run that was ended is continued from CACHE.
`rates` compares them by the protocol of landmarks.py, templates of one kind and probes of another.
`time` is the processor time of the detector. CACHE holds biometric data.
"""

import argparse
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import landmarks
import numpy as np
from degraded_faces import is_development

from app.decision.face_selection import BYSTANDER_SIZE, FaceSelection, select_box
from app.faces.detect import Detector, letterbox
from app.faces.embed import Recogniser
from app.faces.images import align_faces
from app.faces.landmarks import LandmarkRefiner
from app.faces.looks import largest_first
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.lab.evaluation.labels import read_label_noise
from app.settings import Device
from app.types import Detections, FloatArray, Image

SIDE, STRANGERS, PHOTOS_EACH, ROUNDS = 750, 500, 3, 40
SHAPES = ((320, 320), (480, 640), (640, 640))


def main() -> None:
    options = arguments()
    cv2.setNumThreads(1)
    {"embed": embed, "rates": rates, "time": times}[options.command](options)


def detectors(options: argparse.Namespace) -> dict[str, Detector]:
    """The pack's detector, and the other form of it."""
    pack = load_pack(options.pack)
    files = {"fp32": pack.detector_path} | ({"form": options.form} if options.form else {})
    return {
        name: Detector(OnnxModel(path, Device.CPU), pack.detector) for name, path in files.items()
    }


def chosen_photos(folder: Path, half: str) -> list[str]:
    noise = read_label_noise(landmarks.NOISE)
    photos: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*/*.jpg")):
        name = str(path.relative_to(folder))
        if is_development(path.parent.name) is (half == "developers") and name not in noise.images:
            photos.setdefault(path.parent.name, []).append(name)
    people = sorted(photos)
    random.Random(7).shuffle(people)
    strangers = [person for person in people if len(photos[person]) == 1][:STRANGERS]
    taken = strangers + [person for person in people if len(photos[person]) > 1]
    random.Random(8).shuffle(taken)  # what a run that was ended has done is a sample of people
    return [name for person in taken for name in photos[person][:PHOTOS_EACH]]


def look(detector: Detector, image: Image, side: int) -> Detections:
    """The faces in a look with `side` pixels, the largest first."""
    framing = replace(detector._framing, height=side, width=side)
    found = detector._look_at(image, letterbox(image.shape, framing), 0)
    return largest_first(found, len(found))


def embed(options: argparse.Namespace) -> None:
    """Write CACHE: of each look the embedding, and how many faces would refuse the photo."""
    folder = options.data / "lfw" / "images"
    photos, found = chosen_photos(folder, options.half), detectors(options)
    pack = load_pack(options.pack)
    assert pack.landmarks is not None, "a pack that corrects landmarks is compared"
    refiner = LandmarkRefiner(OnnxModel(pack.path(pack.landmarks), Device.CPU), pack.landmarks)
    recogniser = Recogniser(OnnxModel(pack.recogniser_path, Device.CPU), pack.recogniser)
    ways = [("fp32", 320), ("fp32", 640), *([("form", 320)] if options.form else [])]
    answers = read_answers(options.cache, [f"{name} {side}" for name, side in ways])
    for number, photo in enumerate(photos[answers.tried :], answers.tried + 1):
        small = np.asarray(cv2.imread(str(folder / photo)), np.uint8)
        image = np.asarray(cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
        looks = [look(found[name], image, side) for name, side in ways]
        if all(map(len, looks)):
            points = []
            for one in looks:
                place = select_box(one.boxes, SIDE, SIDE, FaceSelection.CENTRE)
                assert one.landmarks is not None, "the pack's detector finds them"
                points.append(one.landmarks[place])
            crops = align_faces(image, refiner.refine(image, np.stack(points)))
            answers.photos.append(photo)
            answers.vectors.append(recogniser.embed(crops)[0])
            answers.rivals.append([rivals_of(one) for one in looks])
        else:
            print(f"{photo}: {[len(one) for one in looks]} faces", flush=True)
        answers.tried = number
        if number % 100 == 0 or number == len(photos):
            answers.write(options.cache)
            print(f"{number} of {len(photos)} photos", flush=True)


@dataclass
class Answers:
    """What CACHE holds: of the first `tried` photos those in which every way found a face."""

    ways: list[str]
    tried: int
    photos: list[str]
    vectors: list[FloatArray]
    rivals: list[list[int]]

    def write(self, cache: Path) -> None:
        """To CACHE, whole or not at all."""
        unfinished = cache.with_suffix(".part.npz")
        np.savez(unfinished, ways=np.array(self.ways), tried=self.tried,
                 photos=np.array(self.photos), vectors=np.stack(self.vectors),
                 rivals=np.array(self.rivals))  # fmt: skip
        unfinished.replace(cache)


def read_answers(cache: Path, ways: list[str]) -> Answers:
    """Of CACHE; none where there is no such file."""
    if not cache.exists():
        return Answers(ways, 0, [], [], [])
    held = np.load(cache)
    if list(held["ways"]) != ways:
        raise SystemExit(f"{cache} compares {', '.join(held['ways'])}; name another file.")
    return Answers(
        ways,
        int(held["tried"]),
        held["photos"].tolist(),
        list(held["vectors"]),
        held["rivals"].tolist(),
    )


def rivals_of(found: Detections) -> int:
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).min(axis=1)
    return int((sides >= BYSTANDER_SIZE * sides[0]).sum())


def rates(options: argparse.Namespace) -> None:
    """Print a row for each way to make templates and probes."""
    cache = np.load(options.cache)
    ways = [str(way) for way in cache["ways"]]
    vectors = {way: cache["vectors"][:, place] for place, way in enumerate(ways)}
    several = {way: cache["rivals"][:, place] > 1 for place, way in enumerate(ways)}
    names = [photo.split("/")[0] for photo in cache["photos"]]
    people = landmarks._people(names, read_label_noise(landmarks.NOISE))
    print(
        f"{len(names)} photos, {len(people.enrolled)} enrolled, {len(people.strangers)} strangers"
    )
    for way in ways:
        cosines = (vectors[way] * vectors[ways[0]]).sum(axis=1)
        lone = int((several[way] & ~several[ways[0]]).sum())
        print(f"{way}: several faces in {several[way].sum()}, {lone} of them not in {ways[0]}; "
              f"cosine to {ways[0]}, 1 % and median: {np.quantile(cosines, 0.01):.4f} "
              f"{np.median(cosines):.4f}")  # fmt: skip
    print("| templates | probes | TPIR at FPIR 1 % | difference | FNMR at FMR 1e-4 |")
    print("|---|---|---|---|---|")
    base = landmarks._search(people, vectors[options.base], vectors[options.base])
    mixed = [(one, other) for one in ways for other in ways if one != other]
    for one, other in [(way, way) for way in ways] + mixed:
        result = landmarks._search(people, vectors[one], vectors[other])
        fnmr = landmarks._fnmr(people, vectors[one], vectors[other])
        print(f"| {one} | {other} | {100 * landmarks._tpir(result, people, None):.2f} | "
              f"{landmarks._difference(base, result, people)} | {100 * fnmr:.2f} |",
              flush=True)  # fmt: skip


def times(options: argparse.Namespace) -> None:
    """Print the milliseconds of the detector, and the ratio to the first, for each shape."""
    image = np.asarray(
        cv2.imread(str(options.data / "lfw/images/Aaron_Peirsol/Aaron_Peirsol_0001.jpg")), np.uint8
    )
    found = detectors(options)
    for height, width in SHAPES:
        shown = np.asarray(cv2.resize(image, (width, height)), np.uint8)
        spent = np.empty((ROUNDS, len(found)))
        for row in spent:
            for place, detector in enumerate(found.values()):
                started = time.thread_time()
                look(detector, shown, max(height, width))
                row[place] = time.thread_time() - started
        for place, name in enumerate(found):
            ratio = np.median(spent[:, place] / spent[:, 0])
            print(
                f"{height} x {width} {name}: {1e3 * np.median(spent[:, place]):.1f} ms, {ratio:.2f}"
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["embed", "rates", "time"])
    parser.add_argument("cache", nargs="?", type=Path, default=Path("data/benchmarks/looks.npz"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pack", default="default")
    parser.add_argument("--base", default="fp32 640", help="What differences are counted from.")
    parser.add_argument("--half", choices=("developers", "held-out"), default="developers")
    parser.add_argument("--form", type=Path, help="another form of the pack's detector")
    return parser.parse_args()


if __name__ == "__main__":
    main()
