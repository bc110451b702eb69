"""A GPU against the CPU: parity, images a second by batch, search. `benchmarks/gpu.sh` calls it.

    python benchmarks/gpu.py [--device cpu --quick] [--rows N ...] [--pack PACK]

Parity: cosines between the CPU's float32 and the device's float32 and float16 on faces of LFW, and
how many decisions of pairs.csv at the pack's threshold are the same. Search: a flat index of unit
vectors of 512 numbers in half precision, top 5; to beat, on an RTX 5090 (InsightFace Server): 10
million in half precision 6.83 ms p50, in 8-bit integers 3.84 ms.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import faiss
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from app.evaluation.labels import read_pairs
from app.faces.align import align_faces
from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.onnx_export.faces import Normalisation
from app.onnx_export.precision import Precision
from app.onnx_export.recogniser import Options, export_recogniser, read_onnx
from app.settings import Device

DATA = Path(os.environ.get("LIKENESS_EVAL_DATA", "../shared/data"))
BATCHES = (1, 2, 4, 8, 16, 32, 64)
DIMENSION, TOP = 512, 5
PROOF_FACES = 60
CHUNK = 100_000

Faces = NDArray[np.uint8]
out = Console(width=100)


def main() -> None:
    options = _arguments()
    device = Device(options.device)
    pack = load_pack(options.pack)
    out.print(f"{device.value}, pack {pack.name}, {options.pairs} pairs")
    with tempfile.TemporaryDirectory() as folder:
        _parity(pack, device, options.pairs, Path(folder))
    _throughput(pack, device, BATCHES[:3] if options.quick else BATCHES)
    for rows in options.rows:
        _search(rows, device, 20 if options.quick else 500)


# --- parity ------------------------------------------------------------------------------------


def _parity(pack: ModelPack, device: Device, count: int, folder: Path) -> None:
    faces, first, second = _pairs_of_faces(pack, count)
    if not len(first):
        out.print(f"parity: skipped, no evaluation data at {DATA}")
        return
    half = _half(pack, faces, folder)
    reference, _ = Recogniser(OnnxModel(pack.recogniser_path, Device.CPU), pack.recogniser).embed(
        faces
    )
    decided = _decisions(reference, first, second, pack)
    table = Table("precision", "lowest cosine to CPU fp32", "same decisions", title="Parity")
    for name, path in (("fp32", pack.recogniser_path), ("fp16", half)):
        vectors, _ = Recogniser(OnnxModel(path, device), pack.recogniser).embed(faces)
        cosines = np.einsum("nd,nd->n", vectors, reference)
        same = int((_decisions(vectors, first, second, pack) == decided).sum())
        table.add_row(name, f"{cosines.min():.7f}", f"{same} of {len(decided)}")
    out.print(table)


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
    step = max(1, len(pairs) // count)
    for index in range(0, len(pairs), step):
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
    table = Table("batch", "detector 640 x 640", "recogniser", title="Images a second")
    random = np.random.default_rng(1)
    networks = {
        "detector": (OnnxModel(pack.detector_path, device), 640),
        "recogniser": (OnnxModel(pack.recogniser_path, device), pack.recogniser.input_size),
    }
    for batch in batches:
        row = [str(batch)]
        for network, side in networks.values():
            blob = random.uniform(0, 255, (batch, 3, side, side)).astype(np.float32)
            spent = _times(lambda n=network, b=blob: n.run(b), 5 if device is Device.CPU else 30)
            row.append(f"{batch / np.median(spent):,.0f}")
        table.add_row(*row)
    out.print(table)


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
    try:
        index = _index(rows, device)
    except (RuntimeError, MemoryError) as error:
        out.print(f"search: {rows:,} rows do not fit: {str(error).splitlines()[0]}")
        return
    probes = _unit(np.random.default_rng(9), max(queries, 64))
    table = Table(
        "probes at once", "p50 ms", "p99 ms", title=f"Top {TOP} of {rows:,} x {DIMENSION}"
    )
    index.search(probes[:1], TOP)
    for batch in (1, 64):
        spent = []
        for start in range(queries if batch == 1 else max(5, queries // 10)):
            some = probes[(start * batch) % (len(probes) - batch + 1) :][:batch]
            started = time.perf_counter()
            index.search(some, TOP)
            spent.append(1000 * (time.perf_counter() - started))
        table.add_row(str(batch), f"{np.median(spent):.2f}", f"{np.percentile(spent, 99):.2f}")
    out.print(table)


def _index(rows: int, device: Device) -> Any:
    if device is Device.CPU:
        index = faiss.IndexFlatIP(DIMENSION)
    else:
        options = faiss.GpuIndexFlatConfig()
        options.useFloat16 = True
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), DIMENSION, options)
    random = np.random.default_rng(8)
    for start in range(0, rows, CHUNK):
        index.add(_unit(random, min(CHUNK, rows - start)))
    return index


def _unit(random: np.random.Generator, count: int) -> NDArray[np.float32]:
    vectors = random.standard_normal((count, DIMENSION), np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--pack", default="default")
    parser.add_argument("--pairs", type=int, default=1000, help="of LFW, for parity")
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
