"""Which engine runs the networks on a CPU, and in which precision."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from app.errors import DeviceError
from app.settings import CpuEngine, CpuPrecision

OPENVINO_FP32, OPENVINO_BF16 = "OpenVINO fp32", "OpenVINO bf16"
# Added to the name of what runs the other networks.
INT8_SUFFIX = ", detector in int8"
PROVIDERS = {CpuPrecision.FP32: OPENVINO_FP32, CpuPrecision.BF16: OPENVINO_BF16}
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class CpuOptions:
    """How networks run on a CPU. OpenVINO starts with `copies` of each network, one for each thread
    that runs it. What it has compiled is kept in the folder `compiled`; None: nowhere."""

    engine: CpuEngine = CpuEngine.ONNXRUNTIME
    precision: CpuPrecision = CpuPrecision.AUTO
    copies: int = 1
    compiled: Path | None = None


@dataclass(frozen=True, slots=True)
class Cpu:
    """What Linux says of the processor; all of it empty on other systems."""

    vendor: str = ""
    flags: frozenset[str] = frozenset()

    @classmethod
    def of_this_machine(cls, source: Path = CPU_INFO) -> "Cpu":
        try:
            text = source.read_text()
        except OSError:
            return cls()
        return cls(_value("vendor_id", text), frozenset(_value("flags|Features", text).split()))

    @property
    def computes_bf16(self) -> bool:
        """Whether it has instructions for bfloat16: in AVX-512, AMX, or ARM's NEON and SVE."""
        return bool(self.flags & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})

    @property
    def lacks_int8(self) -> bool:
        """Whether it is known to have no instructions that add products of 8-bit integers in 32
        bits: AVX-512 or AVX VNNI, ARM's dotprod or i8mm."""
        dots = {"avx512_vnni", "avx_vnni", "asimddp", "i8mm"}
        return bool(self.flags) and not self.flags & dots

    @property
    def is_faster_in_bf16(self) -> bool:
        """Whether it was measured to run the default pack faster in OpenVINO's bf16 than in ONNX
        Runtime's float32: an EPYC was, in 0.6 to 0.7 of the time, and other
        processors of AMD are taken to be like it; a Xeon without AMX takes 1.3 to 1.8
        times as long. Xeons with AMX and ARM were not measured."""
        return self.vendor == "AuthenticAMD" and "avx512_bf16" in self.flags


def has_openvino() -> bool:
    """Whether the runtime is installed; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


def openvino_precision(
    options: CpuOptions, cpu: Cpu | None = None, *, installed: bool | None = None
) -> CpuPrecision | None:
    """The precision in which OpenVINO runs the networks; None: ONNX Runtime runs them, in float32.
    With `int8` it is that of all networks but the detector.

    `auto` takes the faster engine of those that are installed. Raises DeviceError for a choice that
    this environment or this CPU cannot run.
    """
    cpu = Cpu.of_this_machine() if cpu is None else cpu
    installed = has_openvino() if installed is None else installed
    engine, precision = options.engine, options.precision
    if precision is CpuPrecision.INT8:
        precision = CpuPrecision.AUTO
    if engine is CpuEngine.ONNXRUNTIME:
        if precision is CpuPrecision.BF16:
            raise DeviceError(
                "LIKENESS_CPU_PRECISION=bf16 needs OpenVINO, and LIKENESS_CPU_ENGINE=onnxruntime "
                "excludes it. Unset one of the two."
            )
        return None
    if engine is CpuEngine.AUTO:
        fast = installed and cpu.is_faster_in_bf16
        if precision is CpuPrecision.FP32 or (precision is CpuPrecision.AUTO and not fast):
            return None
    if not installed:
        asked = "CPU_ENGINE=openvino" if engine is CpuEngine.OPENVINO else "CPU_PRECISION=bf16"
        raise DeviceError(
            f"LIKENESS_{asked} needs OpenVINO, which is not installed: install the extra "
            "'openvino' in place of 'cpu' (make serve EXTRA=openvino), or unset it."
        )
    if precision is CpuPrecision.AUTO:
        return CpuPrecision.BF16 if cpu.is_faster_in_bf16 else CpuPrecision.FP32
    if precision is CpuPrecision.BF16 and not cpu.computes_bf16:
        raise DeviceError(
            "LIKENESS_CPU_PRECISION=bf16 needs a CPU that computes in bfloat16 (avx512_bf16, "
            "amx_bf16 or ARM's bf16), and this one does not. Set it to auto or fp32."
        )
    return precision


def _value(names: str, text: str) -> str:
    found = re.search(rf"^(?:{names})\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""
