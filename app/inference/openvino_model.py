"""Networks that OpenVINO runs on the CPU, and the proof that they answer as ONNX Runtime does.

The runtime is imported only where it is used: it comes with the extra `openvino`.
"""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import DeviceError
from app.inference.compiled_networks import CompiledNetworks
from app.inference.cpu_engine import PROVIDERS, Cpu
from app.inference.machine import usable_cores
from app.inference.session import OnnxModel
from app.settings import CpuPrecision, Device
from app.types import FloatArray

_HINTS = {CpuPrecision.FP32: "f32", CpuPrecision.BF16: "bf16"}
# The lowest cosine of an output to ONNX Runtime's, and how much its length may differ. The drawn
# face is answered with .9998 in bf16 by the default recogniser. Of a network with several outputs,
# a detector, less is asked: most of what it answers is for places without a face (lowest: .957).
MINIMUM_COSINE = {CpuPrecision.FP32: 0.9999, CpuPrecision.BF16: 0.995}
LARGEST_DIFFERENCE = {CpuPrecision.FP32: 0.001, CpuPrecision.BF16: 0.05}
OF_HEADS = (0.9, 0.2)


class OpenVinoModel:
    """One network, safe to run from several threads at a time.

    Each copy of it computes in the thread that runs it, which OpenVINO does only with one stream of
    one thread. With several streams it hands each run to a thread of its own, which takes time
    (docs/benchmarks/networks.md).
    """

    batches_itself = False
    cpu_nodes: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        precision: CpuPrecision,
        copies: int = 1,
        compiled: CompiledNetworks | None = None,
    ) -> None:
        """Load `path` to be run in `precision`, by `copies` threads at a time. If more threads run
        it, more copies are made. Raises PackError (bad file) or DeviceError (OpenVINO cannot run
        it)."""
        self.path = path
        self.precision = precision
        self.provider = PROVIDERS[precision]
        try:
            self._exported, models = _loaded(path, precision, copies, compiled)
            (first,) = models[0].inputs
            self.output_names: list[str] = [one.get_any_name() for one in models[0].outputs]
            # The copy that ran last is taken first: its weights may still be in the cache.
            self.idle: LifoQueue[Any] = LifoQueue()
            for model in models:
                self.idle.put(model.create_infer_request())
        except Exception as error:  # OpenVINO raises RuntimeError and types of its own
            OnnxModel(path, Device.CPU)  # a file that nothing can run is no fault of OpenVINO's
            raise DeviceError(_advice(path, f"does not load: {_short(error)}")) from error
        self._sides: list[int | None] = [
            None if side.is_dynamic else side.get_length() for side in first.partial_shape
        ]
        self.takes_pixels: bool = first.element_type.get_type_name() == "u8"

    @property
    def dynamic_batch(self) -> bool:
        """Whether the network takes more than one image at a time."""
        return self._sides[0] is None

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """Height and width of the images where the network takes no others."""
        if len(self._sides) != 4:
            return None
        height, width = self._sides[1:3] if self.takes_pixels else self._sides[2:4]
        return None if height is None or width is None else (height, width)

    @property
    def _limits(self) -> tuple[float, float]:
        """The lowest cosine and the largest difference of the length that pass the proof."""
        if len(self.output_names) > 1 and self.precision is CpuPrecision.BF16:
            return OF_HEADS
        return MINIMUM_COSINE[self.precision], LARGEST_DIFFERENCE[self.precision]

    def run(self, batch: NDArray[Any]) -> list[FloatArray]:
        """Run the network on (n, 3, height, width) float32, or on (n, height, width, 3) uint8 where
        it takes pixels; all outputs in their order."""
        try:
            request = self.idle.get_nowait()
        except Empty:
            request = _copy(self._exported, self.precision).create_infer_request()
        try:
            # The outputs are copies, which the next run does not change.
            answers = request.infer({0: np.ascontiguousarray(batch)}, share_inputs=True)
            return [answers[i] for i in range(len(self.output_names))]
        finally:
            self.idle.put(request)

    def run_once(self, batch: NDArray[Any]) -> list[FloatArray]:
        """`run`. Raises DeviceError if OpenVINO cannot."""
        try:
            return self.run(batch)
        except Exception as error:
            reason = f"does not run with a batch of {len(batch)} images: {_short(error)}"
            raise DeviceError(_advice(self.path, reason)) from error

    def try_out(self, batch: NDArray[Any]) -> None:
        """Run a batch here and in ONNX Runtime and compare the outputs. Raises DeviceError for a
        difference or a batch that only one of them runs, and what OpenVINO raises if neither
        does."""
        try:
            reference = OnnxModel(self.path, Device.CPU)
            expected = dict(zip(reference.output_names, reference.run(batch), strict=True))
        except Exception as error:  # ONNX Runtime raises its own types
            self.run(batch)
            reason = f"cannot be compared: ONNX Runtime does not run it: {_short(error)}"
            raise DeviceError(_advice(self.path, reason)) from error
        found = dict(zip(self.output_names, self.run_once(batch), strict=True))
        if list(found) != list(expected):
            raise DeviceError(_advice(self.path, f"has the outputs {', '.join(found)}"))
        for name, output in found.items():
            if fault := _difference(output, expected[name], *self._limits):
                raise DeviceError(_advice(self.path, f"answers wrongly: {name} has {fault}"))


def _difference(
    found: FloatArray, expected: FloatArray, lowest: float, largest: float
) -> str | None:
    """What is wrong with an output; None if it is near enough."""
    if found.shape != expected.shape:
        return f"the shape {found.shape} instead of {expected.shape}"
    ours, theirs = (one.ravel().astype(np.float64) for one in (found, expected))
    if not np.isfinite(ours).all():
        return "numbers that are not finite"
    length, wanted = np.linalg.norm(ours), np.linalg.norm(theirs)
    if not wanted or not length:
        return None if length == wanted else f"the length {length:.3g} instead of {wanted:.3g}"
    cosine = float(ours @ theirs / length / wanted)
    if cosine < lowest:
        return f"a cosine of {cosine:.5f} to ONNX Runtime's, below {lowest}"
    if abs(length / wanted - 1) > largest:
        return f"{length / wanted:.3f} of the length of ONNX Runtime's"
    return None


def _advice(path: Path, reason: str) -> str:
    """A sentence for the operator about a network, and one about what to do."""
    return (
        f"OpenVINO {_runtime().version} cannot be used: {path.name} {reason}. To use ONNX Runtime, "
        "set LIKENESS_CPU_ENGINE=onnxruntime, and leave out LIKENESS_CPU_PRECISION=bf16."
    )


def _short(error: Exception) -> str:
    """What an error of OpenVINO says, without places in its source and advice to its developers."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [
        line for line in lines if line and not line.startswith(("Exception from", "Check ", "To "))
    ]
    return " ".join(kept)[:300].rstrip(".") or type(error).__name__


@dataclass(frozen=True, slots=True)
class _Runtime:
    """OpenVINO, of which a process has one."""

    core: Any
    version: str
    # All that a compiled network depends on but itself.
    place: str


@lru_cache(maxsize=1)
def _runtime() -> _Runtime:
    import openvino  # noqa: PLC0415 - only the extra `openvino` brings it

    core = openvino.Core()
    names = [core.get_property("CPU", "FULL_DEVICE_NAME")]
    names += sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    cpu = Cpu.of_this_machine()
    names += [cpu.vendor, *sorted(cpu.flags)]
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]
    version = re.match(r"[\d.]*\d", openvino.__version__)
    number = version.group(0) if version else "unknown"
    full = re.sub(r"[^A-Za-z0-9.]+", "-", openvino.__version__)[:40]
    return _Runtime(core, number, f"{full}-{digest}")


def _loaded(
    path: Path, precision: CpuPrecision, copies: int, kept: CompiledNetworks | None
) -> tuple[bytes, list[Any]]:
    """The compiled network as OpenVINO exports it, of an earlier start or compiled here, and copies
    of it that are ready to run."""
    runtime = _runtime()
    content = path.read_bytes()
    key = f"{hashlib.sha256(content).hexdigest()[:32]}-{precision.value}-{runtime.place}"
    if kept is not None and (exported := kept.load(key)) is not None:
        with suppress(Exception):  # OpenVINO refuses it: compile, and replace it
            return exported, _copies(exported, precision, copies)
    network = runtime.core.read_model(content)
    model = runtime.core.compile_model(network, "CPU", _options(precision))
    exported = model.export_model().getvalue()
    if kept is not None:
        kept.keep(key, exported)
    # Not `model` itself: its outputs may have the names of tensors within the network.
    return exported, _copies(exported, precision, copies)


def _copies(exported: bytes, precision: CpuPrecision, count: int) -> list[Any]:
    with ThreadPoolExecutor(min(count, usable_cores())) as pool:
        return list(pool.map(lambda _: _copy(exported, precision), range(count)))


def _copy(exported: bytes, precision: CpuPrecision) -> Any:
    return _runtime().core.import_model(exported, "CPU", _options(precision))


def _options(precision: CpuPrecision) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,
    }
