"""A GPU against the CPU: parity, images and photos a second, search. `benchmarks/gpu.sh` calls it.

    python benchmarks/gpu.py [--rows N ...] [--pack PACK] [--device cpu] [--quick] [--parts ...]

Parity: cosines between the CPU's float32 and the device's TF32, float32 and float16 on faces of
LFW, and how many decisions of pairs.csv at the pack's threshold are the same. Images a second: one
thread, copies to the device and back included; then batch sizes in turn, in one session and in one
each; then as the service runs them, by threads that each bring one image. Photos a second: the
whole pipeline on photos of LFW, by threads, without HTTP. Search: unit vectors of 512 numbers, in
half precision by cuVS over a buffer of ours (FAISS's flat index in float32 on a CPU); to beat, on
an RTX 5090 (InsightFace Server): 10 million in half precision 6.83 ms p50, in 8-bit integers 3.84.
"""

import argparse
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import faiss
import numpy as np
from numpy.typing import NDArray

import app  # noqa: F401 (switches off ONNX Runtime's reports, so it comes first)

# isort: split
import onnxruntime

from app.errors import DeviceError
from app.faces.detect import ARCHITECTURES, Detector
from app.faces.embed import Recogniser
from app.faces.images import align_faces, network_input
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.index.device_rows import CudaDevice
from app.inference.batching import BatchedModel
from app.inference.cuda import CudaOptions, gpu_name
from app.inference.device_graph import device_graph, read_network
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.policy import CUDA_POLICY
from app.inference.session import OnnxModel
from app.lab.evaluation.labels import read_pairs
from app.lab.export.faces import Normalisation
from app.lab.export.precision import Precision
from app.lab.export.recogniser import Options, export_recogniser, read_onnx
from app.settings import Device
from app.types import PixelScale

DATA = Path(os.environ.get("LIKENESS_EVAL_DATA", "../shared/data"))
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIZES = CUDA_POLICY.batch_sizes
DIMENSION, TOP = 512, 64
PARTS = ("parity", "networks", "photos", "search")
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
    if "parity" in options.parts:
        pairs = min(options.pairs, 100) if options.quick else options.pairs
        with tempfile.TemporaryDirectory() as folder:
            _parity(pack, device, pairs, folder)
    if "networks" in options.parts:
        _throughput(pack, device, BATCHES[:3] if options.quick else BATCHES)
        _in_turn(pack, device)
        _served(pack, device, 1 if options.quick else 2)
    if "photos" in options.parts:
        _photos(pack, device, 1 if options.quick else 4)
    for rows in options.rows if "search" in options.parts else ():
        _search(rows, device, 20 if options.quick else 200)


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
    variants = [
        ("fp32", pack.recogniser_path, CudaOptions(tf32=False)),
        ("fp16", half, CudaOptions()),
    ]
    if device is Device.CUDA:
        variants.insert(0, ("TF32, the default", pack.recogniser_path, CudaOptions()))
    for name, path, options in variants:
        network = OnnxModel(path, device, options)
        vectors, _ = Recogniser(network, pack.recogniser).embed(faces)
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


def _in_turn(pack: ModelPack, device: Device) -> None:
    """A session that sees several sizes plans its convolutions anew at each change."""
    table = []
    for name, path, side, scale in _members(pack):
        free = OnnxModel(path, device)
        given = [network_input(free, _pixels(n, side), scale) for n in SIZES]
        alone = sum(float(np.median(_times(partial(free.run, x), 5))) for x in given)
        together = float(np.median(_times(lambda: [free.run(x) for x in given], 1)))  # noqa: B023
        batched = _batched(path, side, scale, device, owners=1)
        images = [_pixels(n, side) for n in SIZES]
        apart = float(np.median(_times(lambda: [batched.run(x) for x in images], 20)))  # noqa: B023
        batched.close()
        table.append([name, *(f"{1000 * one:,.1f}" for one in (alone, together, apart))])
    columns = ("network", "one session, each size alone", "one session, in turn",
               "a session each, in turn, pixels in")  # fmt: skip
    _table(f"Batches of {', '.join(map(str, SIZES))}, ms together", columns, table)


def _served(pack: ModelPack, device: Device, seconds: float) -> None:
    """Images a second where many threads bring one each, as photos do."""
    counts, members = (1, 8, 64, 128), _members(pack)
    rates = []
    for _, path, side, scale in members:
        batched = _batched(path, side, scale, device, owners=CUDA_POLICY.owners)
        work = partial(batched.run, _pixels(1, side))
        rates.append([f"{_rate_of_threads(work, threads, seconds):,.0f}" for threads in counts])
        batched.close()
    table = [[str(threads), *row] for threads, *row in zip(counts, *rates, strict=True)]
    columns = ("threads", *(member[0] for member in members))
    _table("Images a second, one at a time by threads", columns, table)


def _rate_of_threads(work: Callable[[], Any], threads: int, seconds: float) -> float:
    ends = time.perf_counter() + seconds

    def many(_: int) -> int:
        count = 0
        while time.perf_counter() < ends:
            work()
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(many, range(threads)))
    return done / (seconds + time.perf_counter() - ends)


def _photos(pack: ModelPack, device: Device, seconds: float) -> None:
    """The whole pipeline, without HTTP."""
    files = sorted((DATA / "lfw" / "images").rglob("*.jpg"))[:64]
    photos = [file.read_bytes() for file in files]
    if not photos:
        print(f"Photos: skipped, no evaluation data at {DATA}\n")
        return
    table = []
    for name, options in (("default", CudaOptions()), ("CUDA graphs", CudaOptions(graphs=True))):
        if device is Device.CPU and options.graphs:
            continue
        started = time.perf_counter()
        pipeline = build_pipeline(pack, device, ImageLimits(), options)
        ready = time.perf_counter() - started
        for threads in (1, 16, 128):
            turn = itertools.count()

            def one() -> None:
                data = photos[next(turn) % len(photos)]  # noqa: B023
                pipeline.analyse(data, max_faces=10)  # noqa: B023

            rate = _rate_of_threads(one, threads, seconds)
            table.append([name, f"{ready:.1f}", str(threads), f"{rate:,.0f}"])
        pipeline.close()
    _table("Photos a second, bytes to embeddings, one process",
           ("options", "ready after s", "threads", "photos/s"), table)  # fmt: skip


def _members(pack: ModelPack) -> list[tuple[str, Path, int, PixelScale]]:
    spec = pack.recogniser
    return [
        ("detector", pack.detector_path, pack.detector.input_size,
         ARCHITECTURES[pack.detector.architecture].scale),
        ("recogniser", pack.recogniser_path, spec.input_size,
         PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")),
    ]  # fmt: skip


def _batched(path: Path, side: int, scale: PixelScale, device: Device, owners: int) -> BatchedModel:
    source = read_network(path)

    def open_one(count: int) -> OnnxModel:
        graph = device_graph(source, (count, side, side), scale, candidates=True)
        return OnnxModel(path, device, content=graph.content)

    return BatchedModel(open_one, (side, side, 3), SIZES, owners)


def _pixels(count: int, side: int) -> Faces:
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


# --- search ------------------------------------------------------------------------------------


def _search(rows: int, device: Device, queries: int) -> None:
    search, fitting = _largest(rows, device)
    if search is None:
        return
    probes = _unit(np.random.default_rng(9), max(queries, 64))
    table = []
    cases = ((1, TOP), (1, 512), (1, 4_096), (1, 16_384), (8, TOP), (64, TOP))
    for batch, most in cases if device is Device.CUDA else ((1, TOP), (64, TOP)):
        count = queries if batch == 1 else max(5, queries // 10)
        spent = 1000 * _times(_searches(search, probes, batch, most), count)
        p50, p99 = np.percentile(spent, [50, 99])
        table.append([str(batch), str(most), f"{p50:.2f}", f"{p99:.2f}", str(count)])
    precision = "float32" if device is Device.CPU else "fp16"
    columns = ("probes at once", "nearest", "p50 ms", "p99 ms", "searches")
    _table(f"{fitting:,} x {DIMENSION}, {precision}", columns, table)


Search = Callable[[NDArray[np.float32], int], Any]


def _searches(
    search: Search, probes: NDArray[np.float32], batch: int, most: int
) -> Callable[[], Any]:
    """A search that takes the next probes each time it is called."""
    turn = itertools.count()

    def next_search() -> Any:
        start = next(turn) * batch % (len(probes) - batch + 1)
        return search(probes[start : start + batch], most)

    return next_search


def _largest(rows: int, device: Device) -> tuple[Search | None, int]:
    """A search of as many rows as fit, half as many at each try."""
    while rows >= FEWEST:
        try:
            return _filled(rows, device), rows
        except (RuntimeError, MemoryError, DeviceError) as error:
            reason = (str(error).strip().splitlines() or ["no memory"])[-1]
        # Only here are the error and what it held of the device let go.
        print(f"{rows:,} rows do not fit, half of them are tried ({reason})\n")
        rows //= 2
    print(f"Search: skipped, not even {FEWEST:,} rows fit\n")
    return None, 0


def _filled(rows: int, device: Device) -> Search:
    """One chunk and then another, again and again, for time; the first must find itself."""
    chunk = _unit(np.random.default_rng(1), min(CHUNK, rows))
    others = np.roll(chunk, 1, axis=1)
    if device is Device.CPU:
        index = faiss.IndexFlatIP(DIMENSION)
        for start in range(0, rows, CHUNK):
            index.add((others if start else chunk)[: rows - start])
        search: Search = index.search
    else:
        held = CudaDevice(max_bytes=1 << 50).new_rows(rows, DIMENSION)
        first, other = chunk.astype(np.float16), others.astype(np.float16)
        for start in range(0, rows, CHUNK):
            held.write(start, (other if start else first)[: rows - start])

        def search(probes: NDArray[np.float32], most: int) -> Any:
            return held.search(probes.astype(np.float16), rows, most)

    _, found = search(chunk[:64], TOP)
    if not np.array_equal(found[:, 0], np.arange(64)):
        raise SystemExit(f"The search of {rows:,} rows does not find its own rows.")
    return search


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
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--quick", action="store_true", help="less of everything, to try it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
