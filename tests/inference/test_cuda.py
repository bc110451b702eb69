"""What ONNX Runtime is told for a GPU, as far as it shows without one; the rest is marked gpu."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from app.inference.bound import BoundSession
from app.inference.cuda import (
    CUDA_PROVIDER,
    DRIVER,
    TENSORRT_PROVIDER,
    CudaOptions,
    engine_folder,
    gpu_name,
    missing_library,
    providers,
)
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import Device


def test_the_loader_names_what_is_missing() -> None:
    def load(library: str) -> None:
        if library != DRIVER:
            raise OSError("libcublasLt.so.13: cannot open shared object file: No such file")

    def no_driver(library: str) -> None:
        raise OSError(f"{library}: cannot open shared object file: No such file or directory")

    assert missing_library(no_driver) == DRIVER
    has_provider = (
        Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    ).exists()
    assert missing_library(load) == ("libcublasLt.so.13" if has_provider else None)
    assert missing_library(lambda _library: None) is None


def test_engines_of_other_networks_runtimes_and_gpus_lie_elsewhere(tmp_path: Path) -> None:
    usual = {"runtime": "1.31.1", "gpu": "NVIDIA H100 80GB HBM3, 580.65.06"}
    folder = engine_folder(tmp_path, "ab" * 32, **usual)
    assert folder.parent == tmp_path
    assert folder.name == "abababababababab-NVIDIA-H100-80GB-HBM3-580.65.06-ort1.31.1"
    others = [
        engine_folder(tmp_path, "cd" * 32, **usual),
        engine_folder(tmp_path, "ab" * 32, **{**usual, "runtime": "1.32.0"}),
        engine_folder(tmp_path, "ab" * 32, **{**usual, "gpu": "NVIDIA L4, 580.65.06"}),
    ]
    assert len({folder, *others}) == 4


def test_the_wanted_provider_comes_first(pack: ModelPack, tmp_path: Path) -> None:
    plain = providers(pack.recogniser_path, CudaOptions())
    assert plain[0][0] == CUDA_PROVIDER
    assert "enable_cuda_graph" not in plain[0][1]
    recorded = providers(pack.recogniser_path, CudaOptions(graphs=True))
    assert recorded[0][1]["enable_cuda_graph"] == "1"
    options = CudaOptions(tensorrt=True, engines=tmp_path / "engines")
    name, settings = providers(pack.recogniser_path, options)[0]
    assert name == TENSORRT_PROVIDER
    assert Path(settings["trt_engine_cache_path"]).is_dir()
    assert settings["trt_fp16_enable"] == "0"


def test_a_gpu_has_a_name_or_none() -> None:
    assert gpu_name()


def test_fixed_buffers_answer_like_any_others(pack: ModelPack) -> None:
    """Shapes take turns, and an answer stays what it was when the next run has the buffer."""
    session = ort.InferenceSession(pack.recogniser_path, providers=["CPUExecutionProvider"])
    bound = BoundSession(session, "cpu")
    random = np.random.default_rng(4)
    name = session.get_inputs()[0].name
    kept = []
    for count in (1, 4, 1, 4, 2, 1):
        batch = random.normal(size=(count, 3, 112, 112)).astype(np.float32)
        kept.append((bound.run(batch)[0], session.run(None, {name: batch})[0]))
    for actual, expected in kept:
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpu_answers_every_batch_like_the_cpu(pack: ModelPack, graphs: bool) -> None:
    on_gpu = OnnxModel(pack.recogniser_path, Device.CUDA, CudaOptions(graphs=graphs))
    on_cpu = OnnxModel(pack.recogniser_path, Device.CPU)
    assert on_gpu.provider == CUDA_PROVIDER
    random = np.random.default_rng(5)
    for count in (1, 4, 1, 32, 4):
        batch = random.normal(size=(count, 3, 112, 112)).astype(np.float32)
        a, b = on_gpu.run(batch)[0], on_cpu.run(batch)[0]
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() > 0.999
