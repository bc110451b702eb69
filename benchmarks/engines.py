"""ONNX Runtime and OpenVINO on this CPU: time of each network, and error rates of both.

    python benchmarks/engines.py time [--pack default]
    python benchmarks/engines.py embed CACHE --data ../shared/data [--half held-out]  # minutes
    python benchmarks/engines.py rates CACHE
    python benchmarks/engines.py recall --data ../shared/data
    python benchmarks/engines.py photos FOLDER --data ../shared/data

`time` runs each network in all `--engines` in turn, on one thread: medians of the milliseconds and
of the ratio to the first engine. `embed` analyses LFW's photos of a half of the people by whole
pipelines, and continues a run that was ended; `rates` compares them by the protocol of landmarks.py
(whose words say how TPIR and FNMR are counted), the engines among themselves and mixed: templates
of one, probes of the other. `recall` counts what detectors find of WIDER's labelled faces. `photos`
copies one photo each of 200 people of the development half to FOLDER/ranges, and of 200 others to
FOLDER/proof: what the default pack's int8 detector was made with. CACHE and FOLDER hold biometric
data.
"""

import argparse
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import landmarks
import numpy as np
from degraded_faces import is_development

from app.decision.calibrations import pack_orientation
from app.decision.face_selection import FaceSelection, selector_of
from app.faces.images import drawn_face, to_blob
from app.faces.integers import integer_file
from app.faces.landmarks import SCALE, SIDE
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline, run_to_completion
from app.imaging import ImageLimits
from app.index.port import PRECISION
from app.inference.cpu_engine import Cpu, CpuOptions, openvino_precision
from app.inference.openvino_model import OpenVinoModel
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.lab.evaluation.labels import read_faces, read_label_noise
from app.lab.evaluation.protocol import Analyser, detect_photos
from app.lab.evaluation.run import detection_figures
from app.settings import CpuEngine, CpuPrecision, Device
from app.types import FloatArray, PixelScale

ENGINES = {
    "ONNX Runtime fp32": CpuOptions(),
    "ONNX Runtime int8": CpuOptions(precision=CpuPrecision.INT8),
    "OpenVINO fp32": CpuOptions(CpuEngine.OPENVINO, CpuPrecision.FP32),
    "OpenVINO bf16": CpuOptions(CpuEngine.OPENVINO, CpuPrecision.BF16),
    # The detector in int8, the other networks as `auto` runs them: in bf16 on CPUs of AMD.
    "OpenVINO int8": CpuOptions(CpuEngine.OPENVINO, CpuPrecision.INT8),
}
ROUNDS = 60


def main() -> None:
    options = arguments()
    {"time": times, "embed": embed, "rates": rates, "recall": recall, "photos": photos}[
        options.command
    ](options)


@dataclass(frozen=True, slots=True)
class Case:
    """A network and the images (n, height, width, 3) that it is timed with."""

    name: str
    path: Path
    shape: tuple[int, int, int]
    scale: PixelScale


def cases(pack: ModelPack) -> list[Case]:
    spec = pack.recogniser
    scale = PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")
    detector, recogniser = pack.detector_path, pack.recogniser_path
    pixels = PixelScale(0.0, 1.0, rgb=True)
    faces = [Case("recogniser", recogniser, (n, 112, 112), scale) for n in (1, 2, 8)]
    if pack.landmarks is not None:
        faces.append(Case("landmarks", pack.path(pack.landmarks), (2, SIDE, SIDE), SCALE))
    sizes = ((320, 320), (480, 640), (640, 640))
    return [*faces, *(Case("detector", detector, (1, *size), pixels) for size in sizes)]


def times(options: argparse.Namespace) -> None:
    """Print a row for each network and size of its input."""
    cpu = Cpu.of_this_machine()
    print(f"{cpu.vendor}, {sorted(f for f in cpu.flags if 'bf16' in f or 'amx' in f)}")
    engines = [name for name in ENGINES if name in options.engines]
    print(f"| network | input | {' | '.join(engines)} |\n|---|---|{'---|' * len(engines)}")
    pack = load_pack(options.pack)
    for case in cases(pack):
        count, height, width = case.shape
        images = np.stack([drawn_face(height, width)] * count)
        batch = to_blob(images, case.scale.mean, case.scale.std, rgb=case.scale.rgb)
        networks = [network_of(pack, case, ENGINES[name]) for name in engines]
        measured = np.array([[timed(one, batch) for one in networks] for _ in range(ROUNDS)])[5:]
        ratios = np.median(measured / measured[:, :1], axis=0)
        medians = np.median(measured, axis=0)
        cells = [f"{ms:.2f} (x {r:.2f})" for ms, r in zip(medians, ratios, strict=True)]
        print(f"| {case.name} | {count} x {height} x {width} | {' | '.join(cells)} |", flush=True)


def network_of(pack: ModelPack, case: Case, options: CpuOptions) -> OnnxModel | OpenVinoModel:
    """The network as an engine runs it; only the detector is run in integers."""
    integers = options.precision is CpuPrecision.INT8 and case.name == "detector"
    path = integer_file(pack) if integers else case.path
    precision = openvino_precision(options)
    return OnnxModel(path, Device.CPU) if precision is None else OpenVinoModel(path, precision)


def timed(network: OnnxModel | OpenVinoModel, batch: FloatArray) -> float:
    began = time.perf_counter()
    network.run(batch)
    return 1000 * (time.perf_counter() - began)


def pipeline_of(options: argparse.Namespace, engine: str) -> FacePipeline:
    pack = load_pack(options.pack)
    limits = pack_orientation(pack, PRECISION)
    cpu = ENGINES[engine]
    return build_pipeline(pack, Device.CPU, ImageLimits(), orientation=limits, cpu=cpu)


# --- error rates -----------------------------------------------------------------------------


def embed(options: argparse.Namespace) -> None:
    """Write CACHE/ENGINE.npz: the embedding of each photo's central face."""
    options.cache.mkdir(parents=True, exist_ok=True)
    folder = options.data / "lfw" / "images"
    shown = chosen_photos(folder, options.half)
    central = selector_of(FaceSelection.CENTRE)
    engines = [name for name in ENGINES if name in options.engines]
    files = {name: options.cache / f"{name}.npz" for name in engines}
    found = {name: earlier(file) for name, file in files.items()}
    done = min(map(len, found.values()))
    pipelines = {name: pipeline_of(options, name) for name in engines}
    for number, photo in enumerate(shown[done:], done + 1):
        data = (folder / photo).read_bytes()
        for name, pipeline in pipelines.items():
            face = run_to_completion(pipeline.steps(data, max_faces=100, selector=central)).faces[0]
            assert face.embedding is not None
            found[name][number - 1 :] = [face.embedding]
        if number % 100 == 0 or number == len(shown):
            print(f"{number} of {len(shown)} photos", flush=True)
            for name, rows in found.items():
                np.savez(files[name], photos=np.array(shown[:number]), embeddings=np.stack(rows))


def earlier(file: Path) -> list[FloatArray]:
    """What a run that was ended has embedded."""
    return list(np.load(file)["embeddings"]) if file.exists() else []


def chosen_photos(folder: Path, half: str) -> list[str]:
    """The photos of a half of the people, person by person in a random order: what a run that was
    ended has done is a sample of people."""
    people = sorted(
        person for person in folder.iterdir()
        if is_development(person.name) is (half == "developers")
    )  # fmt: skip
    random.Random(7).shuffle(people)
    return [f"{one.name}/{path.name}" for one in people for path in sorted(one.glob("*.jpg"))]


def photos(options: argparse.Namespace) -> None:
    """Copy what a detector in integers is made with."""
    folder = options.data / "lfw" / "images"
    people = sorted(person for person in folder.iterdir() if is_development(person.name))
    random.Random(3).shuffle(people)
    for name, chosen in (("ranges", people[:200]), ("proof", people[200:400])):
        (options.cache / name).mkdir(parents=True, exist_ok=True)
        for person in chosen:
            shutil.copy(sorted(person.glob("*.jpg"))[0], options.cache / name)


def rates(options: argparse.Namespace) -> None:
    """Print a row for each way to make templates and probes."""
    caches = {name: options.cache / f"{name}.npz" for name in ENGINES}
    found = {name: np.load(path) for name, path in caches.items() if path.exists()}
    first, *others = found
    noise = read_label_noise(landmarks.NOISE)
    photos = found[first]["photos"]
    rows = np.array([photo not in noise.images for photo in photos])
    vectors = {name: one["embeddings"][rows] for name, one in found.items()}
    people = landmarks._people([photo.split("/")[0] for photo in photos[rows]], noise)
    print(
        f"{rows.sum()} photos, {len(people.enrolled)} enrolled, {len(people.strangers)} strangers"
    )
    for name in others:
        cosines = (vectors[first] * vectors[name]).sum(axis=1)
        low = " ".join(f"{np.quantile(cosines, q):.5f}" for q in (0, 0.001, 0.01, 0.5))
        print(f"cosine of {name} to {first}: lowest, 0.1 %, 1 %, median: {low}")
    ways = [(name, name) for name in found] + [(first, name) for name in others]
    print("| templates | probes | TPIR at FPIR 1 % | difference | FNMR at FMR 1e-4 |")
    print("|---|---|---|---|---|")
    base = None
    for one, other in ways:
        result = landmarks._search(people, vectors[one], vectors[other])
        base = base or result
        fnmr = landmarks._fnmr(people, vectors[one], vectors[other])
        print(
            f"| {one} | {other} | {100 * landmarks._tpir(result, people, None):.2f} | "
            f"{landmarks._difference(base, result, people)} | {100 * fnmr:.2f} |",
            flush=True,
        )


def recall(options: argparse.Namespace) -> None:
    """Print what each engine's detector finds of WIDER's faces."""
    wider = options.data / "wider"
    labelled = read_faces(wider / "faces.csv")
    for name in options.engines:
        analyser = Analyser(pipeline_of(options, name))
        figures = detection_figures(
            "faces.csv", detect_photos(analyser, wider / "images", labelled)
        )
        found = ", ".join(
            f">= {one.min_side} px {100 * one.recall:.1f} %" for one in figures.recall
        )
        print(f"{name}: {found}; {figures.unmatched} unmatched", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["time", "embed", "rates", "recall", "photos"])
    parser.add_argument("cache", nargs="?", type=Path, default=Path("data/benchmarks/engines"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pack", default="default")
    parser.add_argument("--half", choices=("developers", "held-out"), default="developers")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    return parser.parse_args()


if __name__ == "__main__":
    main()
