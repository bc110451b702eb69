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
import subprocess
import time
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from gpu_parity import DATA, parity
from gpu_search import search
from gpu_tables import rate_of_threads, show_table, times_of
from numpy.typing import NDArray

import app  # noqa: F401 (switches off ONNX Runtime's reports, so it comes first)

# isort: split
import onnxruntime

from app.faces.detect import ARCHITECTURES
from app.faces.images import network_input
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.inference.batching import BatchedModel
from app.inference.cuda import CudaOptions, gpu_name
from app.inference.device_graph import device_graph, read_network
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.scheduler import CUDA_POLICY
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import PixelScale

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIZES = CUDA_POLICY.batch_sizes
PARTS = ("parity", "networks", "photos", "search")

Pixels = NDArray[np.uint8]


def main() -> None:
    options = _arguments()
    device = Device(options.device)
    pack = load_pack(options.pack)
    print(f"{_hardware(device)}; pack {pack.name}, commit {_commit()}, {_versions()}\n")
    if "parity" in options.parts:
        parity(pack, device, min(options.pairs, 100) if options.quick else options.pairs)
    if "networks" in options.parts:
        _throughput(pack, device, BATCHES[:3] if options.quick else BATCHES)
        sizes = SIZES[:2] if options.quick else SIZES
        _in_turn(pack, device, sizes)
        _served(pack, device, sizes, 1 if options.quick else 2)
    if "photos" in options.parts:
        _photos(pack, device, 1 if options.quick else 4)
    for rows in options.rows if "search" in options.parts else ():
        search(rows, device, 20 if options.quick else 200)


def _hardware(device: Device) -> str:
    return gpu_name() if device is Device.CUDA else "CPU, one thread per network"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _versions() -> str:
    return f"onnxruntime {onnxruntime.__version__}, faiss {faiss.__version__}"


def _throughput(pack: ModelPack, device: Device, batches: tuple[int, ...]) -> None:
    networks = [OnnxModel(pack.detector_path, device), OnnxModel(pack.recogniser_path, device)]
    sides = [pack.detector.input_size, pack.recogniser.input_size]
    repeats = 5 if device is Device.CPU else 30
    table = [
        [str(batch), *(_rate(n, s, batch, repeats) for n, s in zip(networks, sides, strict=True))]
        for batch in batches
    ]
    columns = ("batch", f"detector {sides[0]} x {sides[0]}", f"recogniser {sides[1]} x {sides[1]}")
    show_table("Images a second", columns, table)


def _rate(network: OnnxModel, side: int, batch: int, repeats: int) -> str:
    """Images a second; a dash where the network takes one at a time."""
    if batch > 1 and not network.dynamic_batch:
        return "-"
    height, width = network.fixed_size or (side, side)
    pixels = np.random.default_rng(1).uniform(0, 255, (batch, height, width, 3))
    images = pixels.astype(np.uint8)
    if not network.takes_pixels:
        images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    return f"{batch / np.median(times_of(lambda: network.run(images), repeats)):,.0f}"


def _in_turn(pack: ModelPack, device: Device, sizes: tuple[int, ...]) -> None:
    """A session that sees several sizes plans its convolutions anew at each change."""
    table = []
    for name, path, side, scale in _members(pack):
        free = OnnxModel(path, device)
        given = [network_input(free, _pixels(n, side), scale) for n in sizes]
        alone = sum(float(np.median(times_of(partial(free.run, x), 5))) for x in given)
        together = float(np.median(times_of(lambda: [free.run(x) for x in given], 1)))  # noqa: B023
        batched = _batched(path, side, scale, device, sizes, owners=1)
        images = [_pixels(n, side) for n in sizes]
        apart = float(np.median(times_of(lambda: [batched.run(x) for x in images], 20)))  # noqa: B023
        batched.close()
        table.append([name, *(f"{1000 * one:,.1f}" for one in (alone, together, apart))])
    columns = ("network", "one session, each size alone", "one session, in turn",
               "a session each, in turn, pixels in")  # fmt: skip
    show_table(f"Batches of {', '.join(map(str, sizes))}, ms together", columns, table)


def _served(pack: ModelPack, device: Device, sizes: tuple[int, ...], seconds: float) -> None:
    """Images a second where many threads bring one each, as photos do."""
    counts = (1, 8) if sizes != SIZES else (1, 8, 64, 128)
    members = _members(pack)
    rates = []
    for _, path, side, scale in members:
        batched = _batched(path, side, scale, device, sizes, owners=CUDA_POLICY.owners)
        work = partial(batched.run, _pixels(1, side))
        rates.append([f"{rate_of_threads(work, threads, seconds):,.0f}" for threads in counts])
        batched.close()
    table = [[str(threads), *row] for threads, *row in zip(counts, *rates, strict=True)]
    columns = ("threads", *(member[0] for member in members))
    show_table("Images a second, one at a time by threads", columns, table)


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

            rate = rate_of_threads(one, threads, seconds)
            table.append([name, f"{ready:.1f}", str(threads), f"{rate:,.0f}"])
        pipeline.close()
    show_table("Photos a second, bytes to embeddings, one process",
           ("options", "ready after s", "threads", "photos/s"), table)  # fmt: skip


def _members(pack: ModelPack) -> list[tuple[str, Path, int, PixelScale]]:
    spec = pack.recogniser
    return [
        ("detector", pack.detector_path, pack.detector.input_size,
         ARCHITECTURES[pack.detector.architecture].scale),
        ("recogniser", pack.recogniser_path, spec.input_size,
         PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")),
    ]  # fmt: skip


def _batched(
    path: Path, side: int, scale: PixelScale, device: Device, sizes: tuple[int, ...], *, owners: int
) -> BatchedModel:
    source = read_network(path)

    def open_one(count: int) -> OnnxModel:
        graph = device_graph(source, (count, side, side), scale, candidates=True)
        return OnnxModel(path, device, content=graph.content)

    return BatchedModel(open_one, (side, side, 3), sizes, owners)


def _pixels(count: int, side: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


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
