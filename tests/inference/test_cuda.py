"""ONNX Runtime's options for a GPU, as far as it shows without one; the rest is marked gpu."""

import logging
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from app.errors import DeviceError, PackError
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.inference.bound import BoundSession
from app.inference.cuda import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    CUDNN,
    DRIVER,
    TENSORRT,
    TENSORRT_PROVIDER,
    CudaOptions,
    advice,
    engine_folder,
    gpu_name,
    missing_library,
    providers,
    tensorrt_version,
)
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.telemetry.logs import LOGGER_NAME

HAS_CUDA = CUDA_PROVIDER in ort.get_available_providers()
# As ONNX Runtime 1.31.1 said it beside a driver that is too old for CUDA 13; hostname left out.
OLD_DRIVER = RuntimeError(
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 "
    "onnxruntime::CudaCall(ERRTYPE, const char*, int) [with ERRTYPE = cudaError; bool THRW = true] "
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355\n"
)


class Loader:
    """The system's loader where some libraries are missing: `needs` says of a file, by a part of
    its name, which of them it is linked against."""

    def __init__(self, *missing: str, needs: dict[str, str] | None = None) -> None:
        self._missing = set(missing)
        self._needs = needs or {}

    def __call__(self, file: str) -> None:
        linked = [library for part, library in self._needs.items() if part in file]
        for library in (file, *linked):
            if library in self._missing:
                raise OSError(
                    f"{library}: cannot open shared object file: No such file or directory"
                )


@pytest.fixture
def gpu_build(tmp_path: Path) -> Path:
    """The folder of a GPU build's providers."""
    for provider in ("cuda", "tensorrt"):
        (tmp_path / f"libonnxruntime_providers_{provider}.so").touch()
    return tmp_path


@pytest.mark.parametrize("library", [DRIVER, "libcublasLt.so.13", CUDNN, TENSORRT])
def test_the_loader_names_what_is_missing(gpu_build: Path, library: str) -> None:
    needs = {"providers_cuda": "libcublasLt.so.13", "providers_tensorrt": TENSORRT}
    loader = Loader(library, needs=needs)
    assert missing_library(loader, tensorrt=True, folder=gpu_build) == library


def test_tensorrt_is_missed_only_where_it_is_asked_for(gpu_build: Path) -> None:
    loader = Loader(TENSORRT, needs={"providers_tensorrt": TENSORRT})
    assert missing_library(loader, folder=gpu_build) is None


def test_nothing_is_missing(gpu_build: Path) -> None:
    assert missing_library(Loader(), tensorrt=True, folder=gpu_build) is None


def test_a_cpu_build_misses_no_library_but_the_driver(tmp_path: Path) -> None:
    assert missing_library(Loader(CUDNN), folder=tmp_path) is None
    assert missing_library(Loader(DRIVER), folder=tmp_path) == DRIVER


def test_what_fails_to_load_for_another_reason_is_not_missing(gpu_build: Path) -> None:
    def load(file: str) -> None:
        raise OSError(f"{file}: undefined symbol: Provider_GetHost")

    assert missing_library(load, folder=gpu_build) is None


@pytest.mark.parametrize(
    ("library", "remedy"),
    [
        (DRIVER, "nstall NVIDIA's driver"),
        ("libcublasLt.so.13", "nstall the 'gpu' extra"),
        (TENSORRT, "unset LIKENESS_TENSORRT"),
    ],
)
def test_advice_names_the_library_and_who_brings_it(library: str, remedy: str) -> None:
    reported = advice("It did not start", CudaOptions(tensorrt=True), missing=lambda **_: library)
    assert f"{library} is missing" in reported
    assert remedy in reported
    assert "LIKENESS_DEVICE=cpu" in reported


def test_advice_keeps_cuda_s_words_and_no_signatures() -> None:
    reported = advice("It did not start", CudaOptions(), OLD_DRIVER, missing=lambda **_: None)
    assert (
        "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version. "
        in reported
    )
    assert "onnxruntime_src" not in reported
    assert "\n" not in reported


def test_advice_names_the_option_that_may_be_at_fault() -> None:
    reported = advice(
        "It did not start",
        CudaOptions(graphs=True),
        RuntimeError("/onnxruntime_src/a.cc:7 void f(int) This session cannot capture."),
        missing=lambda **_: None,
    )
    assert "It did not start; This session cannot capture. " in reported
    assert "nset LIKENESS_CUDA_GRAPHS" in reported


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
@pytest.mark.parametrize("options", [CudaOptions(), CudaOptions(graphs=True, tensorrt=True)])
def test_a_cpu_build_refuses_cuda_and_says_why(pack: ModelPack, options: CudaOptions) -> None:
    wanted = TENSORRT_PROVIDER if options.tensorrt else CUDA_PROVIDER
    with pytest.raises(DeviceError, match=rf"built without {wanted}.*Install the 'gpu' extra"):
        OnnxModel(pack.recogniser_path, Device.CUDA, options)


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_auto_says_what_each_network_runs_on(
    pack: ModelPack, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, LOGGER_NAME):
        build_pipeline(pack, Device.AUTO, ImageLimits()).close()
    lines = [record for record in caplog.records if record.message == "network loaded"]
    assert [(line.levelname, line.fields) for line in lines] == [  # type: ignore[attr-defined]
        ("INFO", {"network": name, "file": f"{name}.onnx", "runs_on": CPU_PROVIDER})
        for name in ("detector", "recogniser", "landmarks")
    ]


def test_engines_of_others_lie_elsewhere(tmp_path: Path) -> None:
    usual = {"runtime": "1.31.1", "tensorrt": "101303", "gpu": "NVIDIA L4, 8.9, 580.65.06"}
    folder = engine_folder(tmp_path, "ab" * 32, **usual)
    assert folder.parent == tmp_path
    assert folder.name == "abababababababab-NVIDIA-L4-8.9-580.65.06-trt101303-ort1.31.1"
    others = [
        engine_folder(tmp_path, "cd" * 32, **usual),
        engine_folder(tmp_path, "ab" * 32, **{**usual, "runtime": "1.32.0"}),
        engine_folder(tmp_path, "ab" * 32, **{**usual, "tensorrt": "101400"}),
        engine_folder(tmp_path, "ab" * 32, **{**usual, "gpu": "NVIDIA L4, 8.9, 590.1"}),
        engine_folder(tmp_path, "ab" * 32, **{**usual, "gpu": "NVIDIA T4, 7.5, 580.65.06"}),
    ]
    assert len({folder, *others}) == 6


def test_a_tensorrt_that_is_not_there_has_no_version() -> None:
    assert tensorrt_version(Loader(TENSORRT)) == "unknown"


def test_the_wanted_provider_comes_first(pack: ModelPack, tmp_path: Path) -> None:
    network = pack.recogniser.sha256
    plain = providers(network, CudaOptions())
    assert plain[0][0] == CUDA_PROVIDER
    assert "enable_cuda_graph" not in plain[0][1]
    recorded = providers(network, CudaOptions(graphs=True))
    assert recorded[0][1]["enable_cuda_graph"] == "1"
    options = CudaOptions(tensorrt=True, engines=tmp_path / "engines")
    name, settings = providers(network, options)[0]
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


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of two networks' answers, by image."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(("member", "side"), [("recogniser", 112), ("detector", 320)])
def test_a_gpu_answers_a_batch_like_the_cpu(
    pack: ModelPack, member: str, side: int, graphs: bool
) -> None:
    """Also in the runs in which it is recorded and replayed."""
    path = getattr(pack, f"{member}_path")
    on_gpu = OnnxModel(path, Device.CUDA, CudaOptions(graphs=graphs))
    on_cpu = OnnxModel(path, Device.CPU)
    assert on_gpu.provider == CUDA_PROVIDER
    random = np.random.default_rng(5)
    for _ in range(4):
        batch = random.normal(size=(4, 3, side, side)).astype(np.float32)
        for a, b in zip(on_gpu.run(batch), on_cpu.run(batch), strict=True):
            assert cosines(a, b).min() > 0.999


@pytest.mark.gpu
@pytest.mark.parametrize("member", ["detector", "recogniser"])
def test_no_node_of_the_default_pack_is_left_to_the_cpu(pack: ModelPack, member: str) -> None:
    """A session that is on CUDA by name can still hand nodes over; this makes it refuse to."""
    path = getattr(pack, f"{member}_path")
    OnnxModel(path, Device.CUDA)  # which loads the libraries
    strict = ort.SessionOptions()
    strict.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    cuda = providers("", CudaOptions())[:1]
    session = ort.InferenceSession(path, strict, providers=cuda, enable_fallback=False)
    assert session.get_providers()[0] == CUDA_PROVIDER


@pytest.mark.gpu
def test_a_file_that_is_no_network_is_not_the_gpu_s_fault(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(PackError, match=r"bad\.onnx is not a network that can be run"):
        OnnxModel(tmp_path / "bad.onnx", Device.CUDA)
