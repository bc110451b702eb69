"""Packs side by side: error rates over several choices of the enrolled photo, and time of a photo.

    python benchmarks/packs.py rates default accurate fast --half held-out --data ../shared/data
    python benchmarks/packs.py time default accurate fast --data ../shared/data

`rates` follows the protocol of landmarks.py, whose words say how TPIR and FNMR are counted, by the
cosine alone; the first pack is what the others are compared with. A pack of the first one's
embedding space is also tried as the pack of the probes alone. Photos that `likeness evaluate` has
analysed are taken from its cache, and those analysed here are added to it: biometric data.

`time` analyses photos by all packs in turn, on one thread: medians of the processor's time, in all
and of the detector, and of the ratios to the first pack.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import cv2
import landmarks
import numpy as np
from degraded_faces import is_development
from stages import LFW_PHOTO, PORTRAIT

from app.cli.evaluate import CACHE_FILE
from app.decision.calibrations import pack_orientation
from app.decision.face_selection import FaceSelection
from app.faces.detect import Detector
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits, decode_image
from app.index.port import PRECISION
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.lab.evaluation.cache import PhotoCache
from app.lab.evaluation.labels import read_label_noise
from app.lab.evaluation.pipeline_digest import pipeline_digest
from app.lab.evaluation.protocol import Analyser, enrol_photos
from app.settings import Device, Settings
from app.types import FloatArray

ROUNDS = 40


def main() -> None:
    options = arguments()
    settings = Settings()
    packs = {name: load_pack(name, settings.installed_packs) for name in options.packs}
    if options.command == "rates":
        rates(packs, options.data / "lfw" / "images", options.half, settings.data_dir)
    else:
        times(packs, options.data)


def rates(packs: dict[str, ModelPack], folder: Path, half: str, data_dir: Path) -> None:
    """Print a row for each pack, and for each pack of the probes alone."""
    noise = read_label_noise(landmarks.NOISE)
    photos = [
        name
        for path in sorted(folder.glob("*/*.jpg"))
        if is_development(path.parent.name) is (half == "developers")
        and (name := str(path.relative_to(folder))) not in noise.images
    ]
    people = landmarks._people([photo.split("/")[0] for photo in photos], noise)
    counts = len(photos), len(people.enrolled), len(people.strangers)
    print("{} photos, {} enrolled, {} strangers".format(*counts))
    vectors = {name: embeddings(pack, folder, photos, data_dir) for name, pack in packs.items()}
    first, *others = packs
    ways = [(name, name) for name in packs]
    ways += [
        (first, name)
        for name in others
        if packs[name].embedding_space == packs[first].embedding_space
    ]
    print("| templates | probes | TPIR at FPIR 1 % | difference | FNMR at FMR 1e-4 |")
    print("|---|---|---|---|---|")
    base = None
    for one, other in ways:
        found = landmarks._search(people, vectors[one], vectors[other])
        base = base or found
        fnmr = landmarks._fnmr(people, vectors[one], vectors[other])
        print(
            f"| {one} | {other} | {100 * landmarks._tpir(found, people, None):.2f} | "
            f"{landmarks._difference(base, found, people)} | {100 * fnmr:.2f} |",
            flush=True,
        )


def embeddings(pack: ModelPack, folder: Path, photos: list[str], data_dir: Path) -> FloatArray:
    """Those of the central faces (n, d)."""
    turned = pack_orientation(pack, PRECISION)
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits(), orientation=turned)
    cache = PhotoCache(data_dir / CACHE_FILE, pipeline_digest(pack, ImageLimits(), turned), print)
    with closing(pipeline), closing(cache):
        found = enrol_photos(Analyser(pipeline, cache), folder, photos, FaceSelection.CENTRE)
    return np.stack([found.faces[photo].embedding for photo in photos])


def times(packs: dict[str, ModelPack], data: Path) -> None:
    """Print a row for each photo and pack."""
    cv2.setNumThreads(1)
    pipelines = {
        name: build_pipeline(pack, Device.CPU, ImageLimits()) for name, pack in packs.items()
    }
    detectors = [
        Detector(OnnxModel(pack.detector_path, Device.CPU), pack.detector)
        for pack in packs.values()
    ]
    print("| photo | pack | ms | ratio | detector, ms | ratio |")
    print("|---|---|---|---|---|---|")
    photos = {"portrait, 910 x 1137": PORTRAIT, "LFW, 250 x 250": data / LFW_PHOTO}
    for photo, file in photos.items():
        content = file.read_bytes()
        image = decode_image(content, ImageLimits())
        spent = np.empty((ROUNDS, len(packs), 2))
        for row in spent:
            for place, (pipeline, detector) in enumerate(
                zip(pipelines.values(), detectors, strict=True)
            ):
                row[place] = (
                    milliseconds(partial(pipeline.analyse, content, max_faces=1)),
                    milliseconds(partial(detector.look, image)),
                )
        medians = np.median(spent, axis=0)
        ratios = np.median(spent / spent[:, :1], axis=0)
        for name, took, ratio in zip(packs, medians, ratios, strict=True):
            print(
                f"| {photo} | {name} | {took[0]:.1f} | {ratio[0]:.2f} | {took[1]:.1f} | "
                f"{ratio[1]:.2f} |"
            )
    for pipeline in pipelines.values():
        pipeline.close()


def milliseconds(work: Callable[[], object]) -> float:
    """The processor's time of this thread."""
    started = time.thread_time()
    work()
    return 1e3 * (time.thread_time() - started)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["rates", "time"])
    parser.add_argument("packs", nargs="+")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--half", choices=("developers", "held-out"), default="held-out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
