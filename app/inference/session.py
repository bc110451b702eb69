"""ONNX Runtime sessions whose provider is checked. If a GPU cannot be used, ONNX Runtime logs a
warning and uses the CPU. Here the session's own list of providers is read back: with `cuda`, the
start fails if CUDA is not used.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
from app.types import FloatArray, Image

# Of one run: requests run side by side instead, a core each.
THREADS = 1
PIXELS = "tensor(uint8)"
# A CUDA graph is recorded in the run after the first. While it is, no other thread may ask CUDA for
# memory, so it must have happened before there are requests.
RUNS_TO_RECORD = 3
DEFAULT_OPTIONS = CudaOptions()


class Network(Protocol):
    """The interface through which detector and recogniser use a network."""

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
    @property
    def cpu_nodes(self) -> tuple[str, ...]: ...
    @property
    def batches_itself(self) -> bool: ...
    def run(self, batch: NDArray[Any]) -> list[FloatArray]: ...


@runtime_checkable
class PlacingNetwork(Network, Protocol):
    """A network that has a place for an image where it will read it: no copy is made."""

    def run_placed(self, write: Callable[[Image], None]) -> list[FloatArray]: ...


class OnnxModel:
    """One network, loaded once and safe to run from several threads at a time."""

    batches_itself = False

    def __init__(
        self,
        path: Path,
        device: Device,
        options: CudaOptions = DEFAULT_OPTIONS,
        content: bytes | None = None,
    ) -> None:
        """Load `path` on `device`, or `content`, which was made of it. Raises PackError (bad file)
        or DeviceError (no such device)."""
        self.path = path
        self._source = _Source(path, content)
        self._options = options
        self._session = _create_session(self._source, device, options)
        self.provider: str = self._session.get_providers()[0]
        self.cpu_nodes = _cpu_nodes(self._session)
        recorded = options.graphs and self.provider != CPU_PROVIDER
        self._bound = BoundSession(self._session, "cuda") if recorded else None
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise PackError(
                f"{path} is not a network that can be run: it has {len(inputs)} inputs, not one."
            )
        first = inputs[0]
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

    def try_out(self, batch: NDArray[Any]) -> None:
        """Run a batch and drop its answer: later runs on this thread find kernels, memory and a
        recorded run ready. Raises DeviceError if the CPU runs the batch and the device does not
        (no memory, no kernel), and what ONNX Runtime raises if neither does."""
        try:
            for _ in range(1 if self._bound is None else RUNS_TO_RECORD):
                self.run(batch)
        except Exception as error:
            if self.provider == CPU_PROVIDER:
                raise
            _on_cpu(self._source).run(None, {self.input_name: batch})
            reason = f"{self.path.name} did not run with a batch of {len(batch)} images"
            raise DeviceError(advice(reason, self._options, error)) from error


@dataclass(frozen=True, slots=True)
class _Source:
    """A network: a file, or what was made of it."""

    path: Path
    content: bytes | None

    @property
    def given(self) -> str | bytes:
        """As ONNX Runtime takes it."""
        return str(self.path) if self.content is None else self.content

    @property
    def sha256(self) -> str:
        """Of the bytes that are run."""
        content = self.path.read_bytes() if self.content is None else self.content
        return hashlib.sha256(content).hexdigest()


def _cpu_nodes(session: ort.InferenceSession) -> tuple[str, ...]:
    """The nodes that a session on a device leaves to the CPU, as `operator name`: the list of
    providers alone does not say where a node runs."""
    return () if session.get_providers()[0] == CPU_PROVIDER else nodes_on(session, CPU_PROVIDER)


def nodes_on(session: ort.InferenceSession, provider: str) -> tuple[str, ...]:
    """The nodes that a provider runs, as `operator name`."""
    return tuple(
        f"{node.op_type} {node.name}".strip()
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == provider
        for node in part.get_nodes()
    )


def _create_session(source: _Source, device: Device, options: CudaOptions) -> ort.InferenceSession:
    if device is Device.CUDA:
        return _on_cuda(source, options)
    if device is Device.AUTO and CUDA_PROVIDER in ort.get_available_providers():
        try:
            return _on_cuda(source, options)
        except DeviceError as error:
            log(logging.WARNING, "no usable GPU, running on the CPU", reason=error.detail)
    return _on_cpu(source)


def _on_cpu(source: _Source) -> ort.InferenceSession:
    try:
        return _open(source, [CPU_PROVIDER])
    except Exception as error:  # ONNX Runtime raises its own types
        raise PackError(f"{source.path} is not a network that can be run: {error}") from error


def _on_cuda(source: _Source, options: CudaOptions) -> ort.InferenceSession:
    wanted = TENSORRT_PROVIDER if options.tensorrt else CUDA_PROVIDER
    if wanted not in ort.get_available_providers():
        raise DeviceError(advice(f"this onnxruntime was built without {wanted}", options))
    try:
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        session = _open(source, providers(source.sha256, options))
    except Exception as error:  # a RuntimeError where a library is missing, and types of its own
        _on_cpu(source)  # A file that nothing can run is no fault of the GPU's.
        raise DeviceError(advice(f"{wanted} did not start", options, error)) from error
    # cuDNN is opened late, so the list of providers alone does not show that it is there.
    if session.get_providers()[0] != wanted or missing_library(tensorrt=options.tensorrt):
        raise DeviceError(advice(f"{wanted} did not start", options))
    return session


def _open(source: _Source, wanted: list[Any]) -> ort.InferenceSession:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = THREADS
    session_options.inter_op_num_threads = 1
    session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session_options.log_severity_level = 3
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Or a provider that fails, here or in a run, makes ONNX Runtime create the session on another
    # one, and the reason is lost.
    return ort.InferenceSession(
        source.given, session_options, providers=wanted, enable_fallback=False
    )
