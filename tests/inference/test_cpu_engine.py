"""Which engine runs the networks on a CPU, and in which precision."""

from pathlib import Path

import pytest

from app.errors import DeviceError
from app.inference.cpu_engine import Cpu, CpuOptions, openvino_precision
from app.services import cpu_options
from app.settings import CpuEngine, CpuPrecision, Settings

AUTO, ONNXRUNTIME, OPENVINO = CpuEngine
FP32, BF16, INT8 = CpuPrecision.FP32, CpuPrecision.BF16, CpuPrecision.INT8
EPYC = Cpu("AuthenticAMD", frozenset({"avx512f", "avx512_bf16"}))
OLD_EPYC = Cpu("AuthenticAMD", frozenset({"avx2"}))
XEON = Cpu("GenuineIntel", frozenset({"avx512f", "avx512_bf16"}))


@pytest.mark.parametrize(
    ("engine", "precision", "cpu", "installed", "chosen"),
    [
        (AUTO, CpuPrecision.AUTO, EPYC, True, BF16),
        (AUTO, CpuPrecision.AUTO, EPYC, False, None),
        (AUTO, CpuPrecision.AUTO, OLD_EPYC, True, None),
        # Measured: a Xeon without AMX is slower in bf16.
        (AUTO, CpuPrecision.AUTO, XEON, True, None),
        (AUTO, FP32, EPYC, True, None),
        (AUTO, BF16, XEON, True, BF16),
        (OPENVINO, CpuPrecision.AUTO, EPYC, True, BF16),
        (OPENVINO, CpuPrecision.AUTO, XEON, True, FP32),
        (OPENVINO, FP32, EPYC, True, FP32),
        (ONNXRUNTIME, CpuPrecision.AUTO, EPYC, True, None),
        (ONNXRUNTIME, FP32, EPYC, False, None),
        # Of all networks but the detector.
        (AUTO, INT8, EPYC, True, BF16),
        (AUTO, INT8, EPYC, False, None),
        (AUTO, INT8, XEON, True, None),
        (OPENVINO, INT8, XEON, True, FP32),
        (ONNXRUNTIME, INT8, XEON, False, None),
    ],
)
def test_the_engine_that_is_faster_on_this_cpu(
    engine: CpuEngine,
    precision: CpuPrecision,
    cpu: Cpu,
    installed: bool,
    chosen: CpuPrecision | None,
) -> None:
    options = CpuOptions(engine, precision)
    assert openvino_precision(options, cpu, installed=installed) is chosen


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (CpuOptions(OPENVINO), "LIKENESS_CPU_ENGINE=openvino"),
        (CpuOptions(OPENVINO, INT8), "LIKENESS_CPU_ENGINE=openvino"),
        (CpuOptions(AUTO, BF16), "LIKENESS_CPU_PRECISION=bf16"),
    ],
)
def test_a_missing_runtime_is_named_with_its_extra(options: CpuOptions, named: str) -> None:
    with pytest.raises(DeviceError, match=rf"{named} needs OpenVINO.*extra 'openvino'"):
        openvino_precision(options, EPYC, installed=False)


def test_bf16_needs_a_cpu_that_computes_in_it() -> None:
    with pytest.raises(
        DeviceError, match=r"avx512_bf16.*this one does not. Set it to auto or fp32"
    ):
        openvino_precision(CpuOptions(OPENVINO, BF16), OLD_EPYC, installed=True)


def test_onnx_runtime_has_no_bf16() -> None:
    with pytest.raises(DeviceError, match="CPU_ENGINE=onnxruntime excludes it"):
        openvino_precision(CpuOptions(ONNXRUNTIME, BF16), EPYC, installed=True)


def test_openvino_starts_with_a_copy_of_each_network_for_each_worker(tmp_path: Path) -> None:
    assert cpu_options(Settings(workers=3), tmp_path).copies == 3


@pytest.mark.parametrize(
    ("flags", "lacking"),
    [
        ({"avx512f", "avx512_vnni"}, False),
        ({"avx2", "avx_vnni"}, False),
        ({"asimd", "asimddp"}, False),
        ({"avx2"}, True),
        ({"asimd"}, True),
        (set[str](), False),  # another system than Linux: not known
    ],
)
def test_instructions_for_integers(flags: set[str], lacking: bool) -> None:
    assert Cpu("", frozenset(flags)).lacks_int8 is lacking


def test_linux_names_vendor_and_flags(tmp_path: Path) -> None:
    source = tmp_path / "cpuinfo"
    source.write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16\n\n"
        "processor\t: 1\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512_bf16\n"
    )
    cpu = Cpu.of_this_machine(source)
    assert cpu == Cpu("AuthenticAMD", frozenset({"fpu", "avx512_bf16"}))
    assert cpu.computes_bf16
    assert cpu.is_faster_in_bf16


def test_arm_names_features(tmp_path: Path) -> None:
    source = tmp_path / "cpuinfo"
    source.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    cpu = Cpu.of_this_machine(source)
    assert cpu.computes_bf16
    assert not cpu.is_faster_in_bf16


def test_other_systems_name_nothing(tmp_path: Path) -> None:
    assert Cpu.of_this_machine(tmp_path / "missing") == Cpu()
