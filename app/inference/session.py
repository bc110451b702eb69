"""ONNX Runtime sessions whose provider is proven, not hoped for.

ONNX Runtime answers an unusable GPU with a warning and runs on the CPU. Here the session's own
list of providers is read back, so `cuda` means CUDA or a start that fails.
"""

import logging
from pathlib import Path
from typing import Any, Protocol

import onnxruntime as ort
from numpy.typing import NDArray

from app.errors import DeviceError, PackError
from app.inference.bound import BoundSession
from app.inference.cuda import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    CudaOptions,
    advice,
    missing_library,
    providers,
)
from app.settings import Device
from app.telemetry.logs import log
from app.types import FloatArray

# Of one run: requests run side by side instead, a core each.
THREADS = 1
PIXELS = "tensor(uint8)"
DEFAULT_OPTIONS = CudaOptions()


class Network(Protocol):
    """What detector and recogniser know of the network they run."""

    @property
    def path(self) -> Path: ...
    @property
    def provider(self) -> str: ...
    @property
    def output_names(self) -> list[str]: ...
    @property
    def dynamic_batch(self) -> bool: ...
    @property
    def fixed_size(self) -> tuple[int, int] | None: ...
    @property
    def takes_pixels(self) -> bool: ...
    def run(self, batch: NDArray[Any]) -> list[FloatArray]: ...


class OnnxModel:
    """One network, loaded once and safe to run from several threads at a time."""

    def __init__(self, path: Path, device: Device, options: CudaOptions = DEFAULT_OPTIONS) -> None:
        """Load `path` on `device`. Raises PackError (bad file) or DeviceError (no such device)."""
        self.path = path
        self._session = _create_session(path, device, options)
        self.provider: str = self._session.get_providers()[0]
        recorded = options.graphs and self.provider != CPU_PROVIDER
        self._bound = BoundSession(self._session, "cuda") if recorded else None
        first = self._session.get_inputs()[0]
        self.input_name: str = first.name
        self.input_shape: list[int | str | None] = list(first.shape)
        self.output_names: list[str] = [output.name for output in self._session.get_outputs()]
        # Their colours and scale are the graph's business then: (n, height, width, 3) BGR.
        self.takes_pixels: bool = first.type == PIXELS

    @property
    def dynamic_batch(self) -> bool:
        """Whether the network takes more than one image at a time."""
        return not isinstance(self.input_shape[0], int)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of the images where the network takes no others."""
        match self.input_shape:
            case [_, int() as height, int() as width, 3] if self.takes_pixels:
                return height, width
            case [_, _, int() as height, int() as width] if not self.takes_pixels:
                return height, width
        return None

    def run(self, batch: NDArray[Any]) -> list[FloatArray]:
        """Run the network on (n, 3, height, width) float32, or on (n, height, width, 3) uint8 where
        it takes pixels; all outputs in their order."""
        if self._bound is not None:
            return self._bound.run(batch)
        return list(self._session.run(self.output_names, {self.input_name: batch}))


def _create_session(path: Path, device: Device, options: CudaOptions) -> ort.InferenceSession:
    if device is Device.CUDA:
        return _on_cuda(path, options)
    if device is Device.AUTO and CUDA_PROVIDER in ort.get_available_providers():
        try:
            return _on_cuda(path, options)
        except DeviceError as error:
            log(logging.WARNING, "no usable GPU, running on the CPU", reason=error.detail)
    return _on_cpu(path)


def _on_cpu(path: Path) -> ort.InferenceSession:
    try:
        return _open(path, [CPU_PROVIDER])
    except Exception as error:  # ONNX Runtime raises its own types
        raise PackError(f"{path} is not a network that can be run: {error}") from error


def _on_cuda(path: Path, options: CudaOptions) -> ort.InferenceSession:
    wanted = TENSORRT_PROVIDER if options.tensorrt else CUDA_PROVIDER
    if wanted not in ort.get_available_providers():
        raise DeviceError(advice(f"this onnxruntime was built without {wanted}", options))
    try:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        session = _open(path, providers(path, options))
    except Exception as error:  # a RuntimeError where a library is missing, and types of its own
        _on_cpu(path)  # A file that nothing can run is no fault of the GPU's.
        raise DeviceError(advice(f"{wanted} did not start", options, error)) from error
    # cuDNN is opened late, so the list of providers alone does not show that it is there.
    if session.get_providers()[0] != wanted or missing_library(tensorrt=options.tensorrt):
        raise DeviceError(advice(f"{wanted} did not start", options))
    return session


def _open(path: Path, wanted: list[Any]) -> ort.InferenceSession:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = THREADS
    session_options.inter_op_num_threads = 1
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session_options.log_severity_level = 3
    # Or a provider that fails, here or in a run, makes ONNX Runtime create the session on another
    # one, and the reason is lost.
    return ort.InferenceSession(str(path), session_options, providers=wanted, enable_fallback=False)
