"""The raw ceiling: decoding and the networks of an embedding in a tight loop, nothing else.

    python benchmarks/ceiling.py --pack PACK PHOTO...             # the sweep, as JSON
    python benchmarks/ceiling.py --pack PACK --best NAME PHOTO... # one configuration, as JSON

No letterboxing, no decoding of heads, no alignment: detector, landmark network (where the pack has
one) and recogniser get blobs made beforehand of the same photos with all their faces, and of their
mirror images where the pack has that. A configuration is processes x threads - sessions - ONNX
Runtime's own threads; printed are photos a second and the median milliseconds of one.
"""

import argparse
import json
import multiprocessing
import queue
import statistics
import threading
import time
from dataclasses import dataclass
from itertools import count
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import app  # noqa: F401 (switches off ONNX Runtime's reports, so it comes first)

# isort: split
import onnxruntime as ort

from app.faces.detect import ARCHITECTURES, Detector, letterbox
from app.faces.images import align_faces, cut_faces, network_input, similarity_transforms, to_blob
from app.faces.landmarks import SCALE, SIDE, TARGET
from app.imaging import ImageLimits, decode_at_least
from app.inference.machine import usable_cores
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import Image

LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class Way:
    """How the loop runs: processes, threads of each, whether threads share sessions, and the
    threads ONNX Runtime may use for one run."""

    processes: int
    threads: int
    shared: bool
    intra: int
    staged: bool = False

    def __str__(self) -> str:
        if self.staged:
            return "staged"
        sessions = "shared" if self.shared else "own"
        return f"{self.processes}x{self.threads}-{sessions}-{self.intra}"


def ways(cores: int) -> list[Way]:
    """What the sweep tries."""
    return [
        Way(1, 1, True, 1),
        Way(1, 1, True, cores),
        Way(1, cores, True, 1),
        Way(1, cores, False, 1),
        Way(1, cores + 1, True, 1),
        Way(1, 2 * cores, True, 1),
        Way(1, cores, True, cores),
        Way(cores, 1, True, 1),
        Way(1, cores, True, 1, staged=True),
    ]


class Sessions:
    """The networks that an embedding takes."""

    def __init__(self, pack: ModelPack, intra: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = intra, 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.detector = ort.InferenceSession(str(pack.detector_path), options, providers=providers)
        path = str(pack.recogniser_path)
        self.recogniser = ort.InferenceSession(path, options, providers=providers)
        self.landmarks: ort.InferenceSession | None = None
        if pack.landmarks is not None:
            path = str(pack.path(pack.landmarks))
            self.landmarks = ort.InferenceSession(path, options, providers=providers)

    def run(self, photo: "Prepared") -> None:
        self.detect(photo.detector_blob)
        self.embed(photo)

    def detect(self, blob: NDArray[Any]) -> None:
        self.detector.run(None, {self.detector.get_inputs()[0].name: blob})

    def embed(self, photo: "Prepared") -> None:
        if self.landmarks is not None:
            self.landmarks.run(None, {self.landmarks.get_inputs()[0].name: photo.landmark_blob})
        self.recogniser.run(None, {self.recogniser.get_inputs()[0].name: photo.recogniser_blob})


@dataclass(frozen=True, slots=True)
class Prepared:
    """One photo: its bytes and what the networks get of it."""

    data: bytes
    detector_blob: NDArray[Any]
    landmark_blob: NDArray[Any]
    recogniser_blob: NDArray[Any]


def prepare(pack: ModelPack, files: list[Path]) -> list[Prepared]:
    network = OnnxModel(pack.detector_path, Device.CPU)
    detector = Detector(network, pack.detector)
    kind, spec = ARCHITECTURES[pack.detector.architecture], pack.recogniser
    made = []
    for file in files:
        data = file.read_bytes()
        image = decode_at_least(data, LIMITS, detector.input_size).pixels
        canvas = letterbox(image.shape, detector._framing).drawn(image)[np.newaxis]
        canvas = network_input(network, canvas, kind.scale)
        landmarks = detector.detect(image).landmarks
        if landmarks is None or len(landmarks) == 0:
            continue
        regions = cut_faces(image, similarity_transforms(landmarks, TARGET), SIDE)
        crops = align_faces(image, landmarks, spec.input_size)
        made.append(
            Prepared(
                data,
                canvas,
                to_blob(_both_ways(regions), SCALE.mean, SCALE.std, rgb=SCALE.rgb),
                to_blob(
                    _both_ways(crops) if spec.mirror else crops,
                    spec.mean,
                    spec.std,
                    rgb=spec.colour == "rgb",
                ),
            )
        )
    return made


def _both_ways(crops: Image) -> Image:
    return np.concatenate([crops, crops[:, :, ::-1]])


def loop(pack: ModelPack, photos: list[Prepared], way: Way, seconds: float) -> list[float]:
    """Milliseconds of each photo that the threads of one process did in that time."""
    cv2.setNumThreads(1)
    shared = Sessions(pack, way.intra)
    numbers = count()
    done: list[list[float]] = [[] for _ in range(way.threads)]
    sessions = [shared if way.shared else Sessions(pack, way.intra) for _ in range(way.threads)]
    for one in sessions:
        one.run(photos[0])
    end = time.perf_counter() + seconds

    def work(index: int) -> None:
        while (start := time.perf_counter()) < end:
            photo = photos[next(numbers) % len(photos)]
            decode_at_least(photo.data, LIMITS, pack.detector.input_size)
            sessions[index].run(photo)
            finished = time.perf_counter()
            if finished <= end:  # a photo that is finished later belongs to no second counted
                done[index].append((finished - start) * 1000)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(way.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [spent for one in done for spent in one]


def stages(pack: ModelPack, photos: list[Prepared], way: Way, seconds: float) -> list[float]:
    """The same with threads of its own for each stage, joined by small bounded queues."""
    cv2.setNumThreads(1)
    sessions = Sessions(pack, way.intra)
    sessions.run(photos[0])
    side, done = pack.detector.input_size, []
    queues: list[queue.Queue[Any]] = [queue.Queue(2 * way.threads) for _ in range(3)]
    work = [
        lambda photo: decode_at_least(photo.data, LIMITS, side),
        lambda photo: sessions.detect(photo.detector_blob),
        sessions.embed,
    ]

    def stage(index: int) -> None:
        while (item := queues[index].get()) is not None:
            photo, start = item
            work[index](photo)
            if index + 1 < len(queues):
                queues[index + 1].put(item)
            elif time.perf_counter() < end:
                done.append((time.perf_counter() - start) * 1000)

    end = time.perf_counter() + seconds
    threads = [
        threading.Thread(target=stage, args=(i,)) for i in range(3) for _ in range(way.threads)
    ]
    for thread in threads:
        thread.start()
    for number in count():
        if time.perf_counter() >= end:
            break
        queues[0].put((photos[number % len(photos)], time.perf_counter()))
    for index in range(3):
        for _ in range(way.threads):
            queues[index].put(None)
        for thread in threads[index * way.threads : (index + 1) * way.threads]:
            thread.join()
    return done


def _process(
    start: Barrier, answers: Any, pack: ModelPack, photos: list[Prepared], plan: tuple[Way, float]
) -> None:
    start.wait()
    answers.put(loop(pack, photos, *plan))


def measure(pack: ModelPack, photos: list[Prepared], way: Way, seconds: float) -> list[float]:
    """Milliseconds of each photo done in that time."""
    if way.staged:
        return stages(pack, photos, way, seconds)
    if way.processes == 1:
        return loop(pack, photos, way, seconds)
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(way.processes), context.Queue()
    args = (start, answers, pack, photos, (way, seconds))
    processes = [context.Process(target=_process, args=args) for _ in range(way.processes)]
    for process in processes:
        process.start()
    done = [spent for _ in processes for spent in answers.get()]
    for process in processes:
        process.join()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pack", default="default")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--best", help="only this configuration")
    parser.add_argument("photos", nargs="+", type=Path)
    options = parser.parse_args()
    pack = load_pack(options.pack)
    photos = prepare(pack, options.photos)
    reported = {}
    for way in ways(usable_cores()):
        if options.best in (None, str(way)):
            spent = measure(pack, photos, way, options.seconds)
            reported[str(way)] = (len(spent) / options.seconds, statistics.median(spent))
    print(json.dumps(reported))


if __name__ == "__main__":
    main()
