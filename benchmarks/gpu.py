"""A GPU against the CPU: parity, images a second by batch, search. `benchmarks/gpu.sh` calls it.

    python benchmarks/gpu.py [--rows N ...] [--pack PACK] [--device cpu] [--quick]

Parity: cosines between the CPU's float32 and the device's float32 and float16 on faces of LFW, and
how many decisions of pairs.csv at the pack's threshold are the same. Images a second: one thread,
copies to the device and back included. Search: a flat index of unit vectors of 512 numbers, top 5,
in half precision on a GPU (float32 on a CPU); to beat, on an RTX 5090 (InsightFace Server): 10
million in half precision 6.83 ms p50, in 8-bit integers 3.84 ms. What it printed is in
docs/benchmarks/gpu.md.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import faiss
import numpy as np
from numpy.typing import NDArray

import app  # noqa: F401 (switches off ONNX Runtime's reports, so it comes first)

# isort: split
import onnxruntime

from app.faces.align import align_faces
from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.inference.cuda import gpu_name
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.lab.evaluation.labels import read_pairs
from app.lab.export.faces import Normalisation
from app.lab.export.precision import Precision
from app.lab.export.recogniser import Options, export_recogniser, read_onnx
from app.settings import Device

DATA = Path(os.environ.get("LIKENESS_EVAL_DATA", "../shared/data"))
BATCHES = (1, 2, 4, 8, 16, 32, 64)
DIMENSION, TOP = 512, 5
PROOF_FACES = 60
CHUNK = 100_000
# Fewer rows than this are no gallery to time.
FEWEST = 10_000

Faces = NDArray[np.uint8]


def main() -> None:
    options = _arguments()
    device = Device(options.device)
    pack = load_pack(options.pack)
    print(f"{_hardware(device)}; pack {pack.name}, commit {_commit()}, {_versions()}\n")
    with tempfile.TemporaryDirectory() as folder:
        _parity(pack, device, min(options.pairs, 100) if options.quick else options.pairs, folder)
    _throughput(pack, device, BATCHES[:3] if options.quick else BATCHES)
    for rows in options.rows:
        _search(rows, device, 20 if options.quick else 500)


def _hardware(device: Device) -> str:
    return gpu_name() if device is Device.CUDA else "CPU, one thread a network"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _versions() -> str:
    return f"onnxruntime {onnxruntime.__version__}, faiss {faiss.__version__}"


def _table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """As Markdown, to be pasted."""
    heads = list(columns)
    print(f"{title}\n")
    for cells in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


# --- parity ------------------------------------------------------------------------------------


def _parity(pack: ModelPack, device: Device, count: int, folder: str) -> None:
    faces, first, second = _pairs_of_faces(pack, count)
    if not len(first):
        print(f"Parity: skipped, no evaluation data at {DATA}\n")
        return
    half = _half(pack, faces, Path(folder))
    reference, _ = Recogniser(OnnxModel(pack.recogniser_path, Device.CPU), pack.recogniser).embed(
        faces
    )
    decided = _decisions(reference, first, second, pack)
    table = []
    for name, path in (("fp32", pack.recogniser_path), ("fp16", half)):
        vectors, _ = Recogniser(OnnxModel(path, device), pack.recogniser).embed(faces)
        cosines = np.einsum("nd,nd->n", vectors, reference)
        same = int((_decisions(vectors, first, second, pack) == decided).sum())
        share = f"{same} of {len(decided)} ({same / len(decided):.2%})"
        table.append([name, f"{cosines.min():.7f}", f"{np.median(cosines):.7f}", share])
    columns = ("precision", "lowest cosine to CPU fp32", "median", "same decisions")
    _table(f"Parity on {len(faces)} faces of LFW", columns, table)


def _decisions(
    vectors: NDArray[np.float32],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    pack: ModelPack,
) -> NDArray[np.bool_]:
    similarities = np.einsum("nd,nd->n", vectors[first], vectors[second])
    return np.asarray(similarities >= pack.decision.threshold)


def _half(pack: ModelPack, faces: Faces, folder: Path) -> Path:
    spec, path = pack.recogniser, folder / "half.onnx"
    given = Normalisation(spec.mean, spec.std, rgb=spec.colour == "rgb")
    proof = np.ascontiguousarray(faces[:PROOF_FACES, ..., ::-1])
    options = Options(precision=Precision.FP16)
    export_recogniser(read_onnx(pack.recogniser_path, given), path, proof, options)
    return path


def _pairs_of_faces(
    pack: ModelPack, count: int
) -> tuple[Faces, NDArray[np.intp], NDArray[np.intp]]:
    """Aligned faces (BGR) of the photos of `count` pairs, and the places of each pair's two."""
    if not (DATA / "lfw" / "pairs.csv").is_file():
        return np.empty((0, 112, 112, 3), np.uint8), np.empty(0, np.intp), np.empty(0, np.intp)
    pairs = read_pairs(DATA / "lfw" / "pairs.csv")
    detector = Detector(OnnxModel(pack.detector_path, Device.CPU), pack.detector)
    places: dict[str, int] = {}
    faces: list[Faces] = []
    chosen = []
    for index in np.linspace(0, len(pairs) - 1, min(count, len(pairs)), dtype=int):
        names = (pairs.images_a[index], pairs.images_b[index])
        for name in names:
            if name not in places:
                face = _face(DATA / "lfw" / "images" / name, detector, pack)
                places[name] = len(faces) if face is not None else -1
                faces += [] if face is None else [face]
        chosen.append([places[name] for name in names])
    both = np.array([pair for pair in chosen if min(pair) >= 0], np.intp)
    return np.stack(faces), both[:, 0], both[:, 1]


def _face(path: Path, detector: Detector, pack: ModelPack) -> Faces | None:
    image = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR), np.uint8)
    found = detector.detect(image)
    if not len(found) or found.landmarks is None:
        return None
    largest = int(np.argmax(np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1)))
    one = found.landmarks[largest : largest + 1]
    return np.asarray(align_faces(image, one, pack.recogniser.input_size)[0], np.uint8)


# --- throughput --------------------------------------------------------------------------------


def _throughput(pack: ModelPack, device: Device, batches: tuple[int, ...]) -> None:
    networks = [OnnxModel(pack.detector_path, device), OnnxModel(pack.recogniser_path, device)]
    sides = [pack.detector.input_size, pack.recogniser.input_size]
    repeats = 5 if device is Device.CPU else 30
    table = [
        [str(batch), *(_rate(n, s, batch, repeats) for n, s in zip(networks, sides, strict=True))]
        for batch in batches
    ]
    columns = ("batch", f"detector {sides[0]} x {sides[0]}", f"recogniser {sides[1]} x {sides[1]}")
    _table("Images a second", columns, table)


def _rate(network: OnnxModel, side: int, batch: int, repeats: int) -> str:
    """Images a second; a dash where the network takes one at a time."""
    if batch > 1 and not network.dynamic_batch:
        return "-"
    height, width = network.fixed_size or (side, side)
    pixels = np.random.default_rng(1).uniform(0, 255, (batch, height, width, 3))
    images = pixels.astype(np.uint8)
    if not network.takes_pixels:
        images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    return f"{batch / np.median(_times(lambda: network.run(images), repeats)):,.0f}"


def _times(work: Callable[[], Any], count: int) -> NDArray[np.float64]:
    """Seconds of `count` runs after one that is not counted."""
    work()
    spent = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return np.array(spent)


# --- search ------------------------------------------------------------------------------------


def _search(rows: int, device: Device, queries: int) -> None:
    index, fitting = _largest(rows, device)
    if index is None:
        return
    _check(index, fitting)
    probes = _unit(np.random.default_rng(9), max(queries, 64))
    table = []
    for batch, count in ((1, queries), (64, max(5, queries // 10))):
        spent = 1000 * _times(_searches(index, probes, batch), count)
        p50, p99 = np.percentile(spent, [50, 99])
        table.append([str(batch), f"{p50:.2f}", f"{p99:.2f}", str(count)])
    precision = "float32" if device is Device.CPU else "fp16"
    columns = ("probes at once", "p50 ms", "p99 ms", "searches")
    _table(f"Top {TOP} of {fitting:,} x {DIMENSION}, {precision}", columns, table)


def _searches(index: Any, probes: NDArray[np.float32], batch: int) -> Callable[[], Any]:
    """A search that takes the next probes each time it is called."""
    turn = iter(range(10**9))

    def search() -> Any:
        start = next(turn) * batch % (len(probes) - batch + 1)
        return index.search(probes[start : start + batch], TOP)

    return search


def _largest(rows: int, device: Device) -> tuple[Any, int]:
    """An index of as many rows as fit, half as many at each try."""
    while rows >= FEWEST:
        try:
            return _index(rows, device), rows
        except (RuntimeError, MemoryError) as error:
            reason = (str(error).strip().splitlines() or ["no memory"])[-1]
        # Only here are the error and what it held of the device let go.
        print(f"{rows:,} rows do not fit, half of them are tried ({reason})\n")
        rows //= 2
    print(f"Search: skipped, not even {FEWEST:,} rows fit\n")
    return None, 0


def _index(rows: int, device: Device) -> Any:
    if device is Device.CPU:
        index = faiss.IndexFlatIP(DIMENSION)
    else:
        options = faiss.GpuIndexFlatConfig()
        options.useFloat16 = True
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), DIMENSION, options)
    for start in range(0, rows, CHUNK):
        index.add(_chunk(start, rows))
    return index


def _chunk(start: int, rows: int) -> NDArray[np.float32]:
    return _unit(np.random.default_rng(start), min(CHUNK, rows - start))


def _check(index: Any, rows: int) -> None:
    """Times of wrong answers are worth nothing: the last chunk's rows must find themselves."""
    start = (rows - 1) // CHUNK * CHUNK
    some = _chunk(start, rows)[-64:]
    _, found = index.search(some, TOP)
    if not np.array_equal(found[:, 0], np.arange(rows - len(some), rows)):
        raise SystemExit(f"The search of {rows:,} rows does not find its own rows.")


def _unit(random: np.random.Generator, count: int) -> NDArray[np.float32]:
    vectors = random.standard_normal((count, DIMENSION), np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--pack", default="default")
    parser.add_argument("--pairs", type=int, default=1000, help="of LFW, for parity")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--quick", action="store_true", help="less of everything, to try it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
