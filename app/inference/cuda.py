"""ONNX Runtime's options for a GPU, and what is missing where it cannot be used."""

import ctypes
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from app.disk import private_folder

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

DRIVER = "libcuda.so.1"
# What the locked ONNX Runtime's TensorRT provider is linked against. No requirements file brings
# them.
TENSORRT = "libnvinfer.so.10"
TENSORRT_LIBRARIES = (TENSORRT, "libnvonnxparser.so.10")
# The CUDA provider is not linked against it and opens it late: the loader would not miss it.
CUDNN = "libcudnn.so.9"
_LIBRARY = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")
_FAILURE = re.compile(r"CUDA failure \d+: [^;]*[^;\s]")
_SIGNATURE = re.compile(r"^/\S+:\d+ .*?\) (?=[A-Z])")
_CAPI = Path(ort.__file__).parent / "capi"
# The arena takes what a batch needs, not the next power of two, and no search for convolution
# algorithms that would take the workspace of the largest.
_CUDA = {
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "HEURISTIC",
    "cudnn_conv_use_max_workspace": "0",
}


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """How networks run on a GPU. `graphs`: a run is recorded once and replayed (CUDA graphs);
    `tensorrt`: TensorRT builds an engine of each network and keeps it below `engines`. `tf32`:
    numbers of float32 are multiplied with 10 bits of their fraction, by tensor cores; without it
    neither float32 nor float16 uses them."""

    graphs: bool = False
    tensorrt: bool = False
    engines: Path = Path("engines")
    tf32: bool = True


def providers(network: str, options: CudaOptions) -> list[Any]:
    """ONNX Runtime's providers for one network (its SHA-256), the wanted one first; with TensorRT
    the folder of the network's engines is made."""
    cuda = dict(_CUDA)
    if options.graphs and not options.tensorrt:
        cuda["enable_cuda_graph"] = "1"
    if not options.tf32:
        cuda["use_tf32"] = "0"
    chosen: list[Any] = [(CUDA_PROVIDER, cuda), CPU_PROVIDER]
    if options.tensorrt:
        folder = engine_folder(
            options.engines,
            network,
            runtime=ort.__version__,
            tensorrt=tensorrt_version(),
            gpu=gpu_name(),
        )
        private_folder(folder)
        chosen.insert(0, (TENSORRT_PROVIDER, _tensorrt(folder, graphs=options.graphs)))
    return chosen


def _tensorrt(folder: Path, *, graphs: bool) -> dict[str, str]:
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        # Half precision is a decision about accuracy: an exported network makes it, not a cache.
        "trt_fp16_enable": "0",
        "trt_cuda_graph_enable": "1" if graphs else "0",
    }


def engine_folder(root: Path, network: str, *, runtime: str, tensorrt: str, gpu: str) -> Path:
    """Where the engines of one network (its SHA-256) lie: an engine of another network, ONNX
    Runtime, TensorRT, GPU or driver must never be loaded."""
    place = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu} trt{tensorrt} ort{runtime}").strip("-")
    return root / f"{network[:16]}-{place}"


def gpu_name() -> str:
    """Model, compute capability and driver of the GPUs here, each kind once, as NVIDIA's tool names
    them; "unknown" without it."""
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603 - nothing of it comes from outside
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    kinds = dict.fromkeys(line.strip() for line in done.stdout.splitlines() if line.strip())
    return " and ".join(kinds) or "unknown"


def tensorrt_version(load: Callable[[str], Any] = ctypes.CDLL) -> str:
    """TensorRT's own number of its version; "unknown" where it is not installed."""
    try:
        return str(load(TENSORRT).getInferLibVersion())
    except (OSError, AttributeError):
        return "unknown"


def missing_library(
    load: Callable[[str], object] = ctypes.CDLL, *, tensorrt: bool = False, folder: Path = _CAPI
) -> str | None:
    """The shared library for want of which a GPU cannot be used, None if none is missing.

    The system's loader is asked for the driver and for ONNX Runtime's providers in `folder`: it
    names what they are linked against, so no list here can be out of date.
    """
    wanted = [DRIVER]
    cuda = folder / "libonnxruntime_providers_cuda.so"
    if cuda.exists():
        wanted += [str(cuda), CUDNN]
        wanted += [str(folder / "libonnxruntime_providers_tensorrt.so")] if tensorrt else []
    for library in wanted:
        try:
            load(library)
        except OSError as error:
            if found := _LIBRARY.search(str(error)):
                return found.group(1)
    return None


def advice(
    reason: str,
    options: CudaOptions,
    error: Exception | None = None,
    missing: Callable[..., str | None] = missing_library,
) -> str:
    """A sentence for the operator about a GPU that cannot be used, and one about what to do.

    `error` is ONNX Runtime's own; it loses the signatures of C++ functions around its words.
    """
    library = missing(tensorrt=options.tensorrt)
    text = " ".join(str(error or "").split())
    reported = [reason]
    if failure := _FAILURE.search(text):
        reported.append(failure.group(0))
    elif text and not library:
        reported.append(_SIGNATURE.sub("", text).rstrip("."))
    if library:
        reported.append(f"{library} is missing")
    return (
        f"CUDA cannot be used: {'; '.join(reported)}. {_remedy(library, options)}, or set "
        "LIKENESS_DEVICE=cpu to use the CPU."
    )


def _remedy(library: str | None, options: CudaOptions) -> str:
    steps = []
    if CUDA_PROVIDER not in ort.get_available_providers():
        steps.append("install the 'gpu' extra in place of 'cpu'")
    if library == DRIVER:
        steps.append("install NVIDIA's driver (580 or newer), or pass it into the container")
    elif library in TENSORRT_LIBRARIES:
        steps.append("install TensorRT 10 for CUDA 13, or unset LIKENESS_TENSORRT")
    elif library:
        steps.append("install the 'gpu' extra again, which contains it")
    else:
        chosen = {"LIKENESS_TENSORRT": options.tensorrt, "LIKENESS_CUDA_GRAPHS": options.graphs}
        steps += [f"unset {name}" for name, on in chosen.items() if on]
    steps = steps or ["check that nvidia-smi lists a GPU and a driver of 580 or newer"]
    sentence = " and ".join(steps)
    return sentence[0].upper() + sentence[1:]
