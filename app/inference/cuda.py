"""What ONNX Runtime is told for a GPU, and what is missing where it cannot be used."""

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

DRIVER = "libcuda.so.1"
_LIBRARY = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")
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
    `tensorrt`: TensorRT builds an engine of each network and keeps it below `engines`."""

    graphs: bool = False
    tensorrt: bool = False
    engines: Path = Path("engines")


def providers(network: Path, options: CudaOptions) -> list[Any]:
    """ONNX Runtime's providers for one network, the wanted one first."""
    cuda = dict(_CUDA)
    if options.graphs and not options.tensorrt:
        cuda["enable_cuda_graph"] = "1"
    chosen: list[Any] = [(CUDA_PROVIDER, cuda), CPU_PROVIDER]
    if options.tensorrt:
        folder = engine_folder(
            options.engines,
            hashlib.sha256(network.read_bytes()).hexdigest(),
            runtime=ort.__version__,
            gpu=gpu_name(),
        )
        folder.mkdir(parents=True, exist_ok=True)
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


def engine_folder(root: Path, network: str, *, runtime: str, gpu: str) -> Path:
    """Where the engines of one network (its SHA-256) lie: an engine of another network, runtime,
    GPU or driver must never be loaded."""
    place = re.sub(r"[^A-Za-z0-9.]+", "-", f"{gpu} ort{runtime}").strip("-")
    return root / f"{network[:16]}-{place}"


def gpu_name() -> str:
    """The first GPU's model and driver, as NVIDIA's tool names them; "unknown" without it."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(  # noqa: S603 - nothing of it comes from outside
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else "unknown"


def missing_library(load: Callable[[str], object] = ctypes.CDLL) -> str | None:
    """The shared library for want of which the CUDA provider cannot be loaded, None if none is.

    The system's loader is asked, so that no list of ours can be out of date.
    """
    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    for library in (DRIVER, *([str(provider)] if provider.exists() else [])):
        try:
            load(library)
        except OSError as error:
            found = _LIBRARY.search(str(error))
            if found:
                return found.group(1)
    return None


def advice(reason: str) -> str:
    """A sentence about a GPU that cannot be used."""
    library = missing_library()
    if library == DRIVER:
        reason = (
            f"{reason} ({DRIVER} is missing: NVIDIA's driver is not installed, or not passed in)"
        )
    elif library:
        reason = f"{reason} ({library} is missing: install the extra 'gpu', which brings it)"
    return (
        f"CUDA cannot be used: {reason}. Install the 'gpu' extra on a "
        "machine with an NVIDIA driver, or set LIKENESS_DEVICE=cpu."
    )
