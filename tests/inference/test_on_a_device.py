"""What only a CUDA device can show; each test prints what it measured (`pytest -m gpu -rA`)."""
# ruff: noqa: T201

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from app.errors import DeviceError
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits
from app.inference.batching import BatchedModel
from app.inference.cuda import CUDA_PROVIDER, CudaOptions
from app.inference.device_graph import device_graph, read_network
from app.inference.device_memory import (
    DeviceMemory,
    DeviceOutOfMemory,
    HostBuffer,
    memory_of_device,
)
from app.inference.pack_spec import ModelPack
from app.inference.scheduler import CUDA_POLICY
from app.inference.session import DEFAULT_OPTIONS, OnnxModel
from app.settings import Device
from app.types import AnalysedImage, PixelScale

pytestmark = pytest.mark.gpu
MIB = 1024 * 1024


def median_ms(work: Callable[[], object], repeats: int = 20) -> float:
    spent = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return 1000 * float(np.median(spent))


@contextmanager
def pipeline_on(
    pack: ModelPack, device: Device, options: CudaOptions = DEFAULT_OPTIONS
) -> Iterator[FacePipeline]:
    started = time.perf_counter()
    pipeline = build_pipeline(pack, device, ImageLimits(), options)
    print(f"{device.value}, {options}: ready after {time.perf_counter() - started:.1f} s")
    yield pipeline
    pipeline.close()


def analysed(pipeline: FacePipeline, photos: list[bytes], threads: int) -> list[AnalysedImage]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda photo: pipeline.analyse(photo, max_faces=10), photos))


def find_the_same_faces(pack: ModelPack, folder: Path, *, graphs: bool) -> None:
    """Photos of all shapes, in batches of every size, by two owners: the faces of the CPU."""
    files = sorted(folder.glob("*.jpg"))
    photos = [file.read_bytes() for file in files]
    with pipeline_on(pack, Device.CPU) as on_cpu:
        wanted = analysed(on_cpu, photos, 4)
    repeats = -(-128 // len(photos))
    with pipeline_on(pack, Device.CUDA, CudaOptions(graphs=graphs)) as on_device:
        assert on_device.provider == CUDA_PROVIDER
        assert on_device.cpu_nodes == {}
        assert on_device.policy == CUDA_POLICY
        assert set(on_device.batches) >= {"detector", "recogniser"}
        for threads in (1, 64):
            started = time.perf_counter()
            found = analysed(on_device, photos * repeats, threads)
            spent = time.perf_counter() - started
            print(f"graphs {graphs}, {threads} threads: {len(found) / spent:.0f} photos/s")
        print("batches", on_device.batches)
    for image, expected in zip(found, wanted * repeats, strict=True):
        assert len(image.faces) == len(expected.faces)
        for face, other in zip(image.faces, expected.faces, strict=True):
            assert face.embedding is not None
            assert other.embedding is not None
            assert face.embedding @ other.embedding > 0.9


def test_many_threads_find_the_faces_that_a_cpu_finds(pack: ModelPack, photos: Path) -> None:
    find_the_same_faces(pack, photos, graphs=False)


def test_sizes_in_turn_cost_what_they_cost_alone(pack: ModelPack) -> None:
    """One session that saw them all took seconds at each change (microsoft/onnxruntime#23006)."""
    spec = pack.recogniser
    scale = PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")
    source = read_network(pack.recogniser_path)

    def open_one(count: int) -> OnnxModel:
        graph = device_graph(source, (count, 112, 112), scale, candidates=False)
        return OnnxModel(pack.recogniser_path, Device.CUDA, content=graph.content)

    batched = BatchedModel(open_one, (112, 112, 3), (1, 8, 32), owners=1)
    images = {n: np.full((n, 112, 112, 3), n, np.uint8) for n in (1, 8, 32)}
    alone = [median_ms(lambda n=n: batched.run(images[n])) for n in images]  # type: ignore[misc]
    together = median_ms(lambda: [batched.run(images[n]) for n in images])
    print(f"batches of 1, 8, 32 alone {alone} ms; in turn {together:.2f} ms")
    batched.close()
    assert together < 3 * sum(alone) + 5


def test_a_device_without_memory_is_not_the_pack_s_fault(pack: ModelPack) -> None:
    """A start that finds the device full says so; `auto` starts on the CPU."""
    hoard = []
    block = 8192 * MIB
    while block >= 16 * MIB:  # until not even this fits
        try:
            hoard.append(DeviceMemory(block))
        except DeviceOutOfMemory:
            block //= 2
    try:
        with pytest.raises(DeviceError) as refused:
            build_pipeline(pack, Device.CUDA, ImageLimits())
        print(refused.value.detail)
        assert "pack.toml" not in refused.value.detail
        with pipeline_on(pack, Device.AUTO) as other:
            assert other.provider == "CPUExecutionProvider"
    finally:
        for one in hoard:
            one.free()
    again = OnnxModel(pack.recogniser_path, Device.CUDA)
    again.try_out(np.zeros((1, 3, 112, 112), np.float32))


def test_nodes_on_the_cpu_are_listed_by_name(pack: ModelPack, tmp_path: Path) -> None:
    """A network with free sizes that computes shapes does so on the CPU."""
    onnx = pytest.importorskip("onnx")
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, "h", "w"])
    answer = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Shape", ["x"], ["shape"], "sizes"),
            node("Gather", ["shape", "one"], ["h"], "height", axis=0),
            node("Concat", ["minus", "h"], ["to"], "joined", axis=0),
            node("Reshape", ["x", "to"], ["y"], "reshaped"),
        ],
        "shapes", [given], [answer],
        [
            onnx.numpy_helper.from_array(np.array([2]), "one"),
            onnx.numpy_helper.from_array(np.array([-1]), "minus"),
        ],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "shapes.onnx"
    )
    network = OnnxModel(tmp_path / "shapes.onnx", Device.CUDA)
    print(network.cpu_nodes)
    assert any(name.startswith("Gather") for name in network.cpu_nodes)


def test_device_memory_is_written_zeroed_and_read() -> None:
    memory = DeviceMemory(8 * MIB)
    values = np.random.default_rng(1).integers(0, 255, MIB, np.uint8)
    memory.write(3 * MIB, values)
    memory.zero(3 * MIB + 100, 50)
    values[100:150] = 0
    assert np.array_equal(memory.read(3 * MIB, (MIB,), np.uint8), values)
    other = DeviceMemory(16 * MIB)
    other.copy(0, memory, 0, memory.size)
    memory.free()
    assert np.array_equal(other.read(3 * MIB, (MIB,), np.uint8), values)
    other.free()
    with pytest.raises(DeviceOutOfMemory, match="cudaMalloc"):
        DeviceMemory(1 << 50)
    assert memory_of_device().free > 64 * MIB


def test_page_locked_memory_is_copied_faster() -> None:
    shape = (32, 640, 640, 3)
    plain, locked = HostBuffer(shape, page_locked=False), HostBuffer(shape, page_locked=True)
    assert locked._locked
    memory = DeviceMemory(plain.pixels.nbytes)
    times = [median_ms(lambda b=b: memory.write(0, b.pixels)) for b in (plain, locked)]  # type: ignore[misc]
    print(f"32 photos to the device: pageable {times[0]:.2f} ms, page-locked {times[1]:.2f} ms")
    memory.free()
    locked.close()


def test_recorded_runs_find_them_too(photos: Path) -> None:
    """In a process of its own: a replay that fails ends all use of the device in its process."""
    script = (
        "from pathlib import Path\n"
        "from app.inference.packs import load_pack\n"
        "from tests.inference.test_on_a_device import find_the_same_faces\n"
        f"find_the_same_faces(load_pack('default'), Path({str(photos)!r}), graphs=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False
    )
    print(done.stdout[-3000:], done.stderr[-3000:])
    assert done.returncode == 0
