"""Sessions: the provider that runs is the one that was asked for."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from app.errors import DeviceError, PackError
from app.inference.cuda import CPU_PROVIDER, CUDA_PROVIDER
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel, nodes_on
from app.settings import Device

HAS_CUDA = CUDA_PROVIDER in onnxruntime.get_available_providers()
without_cuda = pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")


@pytest.fixture(scope="module")
def model(pack: ModelPack) -> OnnxModel:
    return OnnxModel(pack.recogniser_path, Device.CPU)


@pytest.fixture(scope="module")
def faces() -> np.ndarray[tuple[int, int, int, int], np.dtype[np.float32]]:
    return np.random.default_rng(2).normal(size=(4, 3, 112, 112)).astype(np.float32)


def test_the_provider_is_the_session_s_own(model: OnnxModel) -> None:
    assert model.provider == CPU_PROVIDER
    assert model.provider == model._session.get_providers()[0]


@without_cuda
def test_onnx_runtime_says_which_node_runs_where(model: OnnxModel) -> None:
    """On a device those that are left to the CPU are listed; here all are the CPU's."""
    nodes = nodes_on(model._session, CPU_PROVIDER)
    assert any(node.startswith("Conv ") for node in nodes)
    assert nodes_on(model._session, CUDA_PROVIDER) == ()
    assert model.cpu_nodes == ()


def test_auto_takes_the_cpu_where_there_is_no_gpu(pack: ModelPack) -> None:
    assert OnnxModel(pack.recogniser_path, Device.AUTO).provider == CPU_PROVIDER


@without_cuda
def test_cuda_is_refused_where_there_is_none(pack: ModelPack) -> None:
    with pytest.raises(DeviceError, match=r"CUDA cannot be used.*'gpu' extra.*LIKENESS_DEVICE=cpu"):
        OnnxModel(pack.recogniser_path, Device.CUDA)


@pytest.mark.gpu
@pytest.mark.parametrize("device", [Device.CUDA, Device.AUTO])
def test_a_gpu_answers_like_the_cpu(
    pack: ModelPack, model: OnnxModel, faces: np.ndarray, device: Device
) -> None:
    on_gpu = OnnxModel(pack.recogniser_path, device)
    assert on_gpu.provider == CUDA_PROVIDER
    a, b = model.run(faces)[0], on_gpu.run(faces)[0]
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999


def test_what_is_known_of_the_input(model: OnnxModel, pack: ModelPack) -> None:
    assert model.dynamic_batch
    assert model.fixed_size == (112, 112)
    assert model.output_names == ["embedding"]
    detector = OnnxModel(pack.detector_path, Device.CPU)
    assert detector.fixed_size is None
    assert len(detector.output_names) == 4


def test_outputs_come_in_their_order(pack: ModelPack) -> None:
    detector = OnnxModel(pack.detector_path, Device.CPU)
    outputs = detector.run(np.zeros((1, 3, 64, 96), np.float32))
    assert [output.shape for output in outputs] == [
        (1, channels, 16, 24) for channels in (1, 2, 2, 10)
    ]


@pytest.mark.parametrize("content", [b"", b"not a network", bytes(500)])
@pytest.mark.parametrize("device", [Device.CPU, Device.AUTO])
def test_a_file_that_is_no_network(tmp_path: Path, content: bytes, device: Device) -> None:
    file = tmp_path / "bad.onnx"
    file.write_bytes(content)
    with pytest.raises(PackError, match=r"bad\.onnx is not a network that can be run"):
        OnnxModel(file, device)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="is not a network that can be run"):
        OnnxModel(tmp_path / "gone.onnx", Device.CPU)


def test_threads_share_a_session(model: OnnxModel, faces: np.ndarray) -> None:
    alone = [model.run(faces[i : i + 1])[0] for i in range(4)]
    with ThreadPoolExecutor(2) as threads:
        turns = [i % 4 for i in range(24)]
        answers = list(threads.map(lambda i: model.run(faces[i : i + 1])[0], turns))
    for i, answer in zip(turns, answers, strict=True):
        assert np.array_equal(answer, alone[i])


class Failing:
    """A device that fails on every run."""

    def run(self, _: np.ndarray) -> list[np.ndarray]:
        raise RuntimeError("/a.cc:7 void f(int) CUDA failure 2: out of memory ; GPU=0 ; file=a.cc")


def on_a_failing_device(model: OnnxModel) -> OnnxModel:
    model.provider, model._bound = CUDA_PROVIDER, Failing()  # type: ignore[assignment]
    return model


def test_what_only_the_device_cannot_run_is_the_device_s_fault(
    pack: ModelPack, faces: np.ndarray
) -> None:
    model = on_a_failing_device(OnnxModel(pack.recogniser_path, Device.CPU))
    with pytest.raises(DeviceError) as refused:
        model.try_out(faces)
    assert "did not run with a batch of 4 images; CUDA failure 2: out of" in refused.value.detail
    assert "pack.toml" not in refused.value.detail


def test_what_the_cpu_cannot_run_either_is_the_network_s_fault(pack: ModelPack) -> None:
    model = on_a_failing_device(OnnxModel(pack.recogniser_path, Device.CPU))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        model.try_out(np.zeros((1, 3, 50, 50), np.float32))


def test_what_was_made_of_a_file_is_run_in_its_place(pack: ModelPack, faces: np.ndarray) -> None:
    content = pack.detector_path.read_bytes()
    made = OnnxModel(pack.recogniser_path, Device.CPU, content=content)
    assert len(made.output_names) == 4
    assert made.path == pack.recogniser_path


@pytest.mark.parametrize("count", [0, 2])
def test_a_network_takes_one_input(tmp_path: Path, count: int) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    make, number = onnx.helper, onnx.TensorProto.FLOAT
    names = [f"image{i}" for i in range(count)]
    node = make.make_node("Sum", [*names, "constant"], ["answer"])
    graph = make.make_graph(
        [node],
        "sum",
        [make.make_tensor_value_info(name, number, ["n", 3, 8, 8]) for name in names],
        [make.make_tensor_value_info("answer", number, None)],
        [onnx.numpy_helper.from_array(np.ones(1, np.float32), "constant")],
    )
    opset = make.make_opsetid("", 17)
    onnx.save(make.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "sum.onnx")
    with pytest.raises(PackError, match=rf"sum.onnx .*has {count} inputs, not one"):
        OnnxModel(tmp_path / "sum.onnx", Device.CPU)
