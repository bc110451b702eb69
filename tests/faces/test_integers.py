"""LIKENESS_CPU_PRECISION=int8: the pack's detector in 8-bit integers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from app.errors import DeviceError, PackError
from app.faces.detect import Detector
from app.faces.integers import check_integers, integer_file
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits
from app.inference.cpu_engine import Cpu, CpuOptions, has_openvino
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import CpuEngine, CpuPrecision, Device
from app.telemetry.logs import LOGGER_NAME

INT8 = CpuOptions(CpuEngine.ONNXRUNTIME, CpuPrecision.INT8)
OLD_CPU = Cpu("GenuineIntel", frozenset({"avx2", "avx512f"}))


@pytest.fixture(scope="module")
def in_integers(pack: ModelPack) -> FacePipeline:
    return build_pipeline(pack, Device.CPU, ImageLimits(), cpu=INT8)


@pytest.mark.slow
def test_the_default_pack_finds_the_same_faces(
    in_integers: FacePipeline, pipeline: FacePipeline, photos: Path
) -> None:
    for photo in sorted(photos.glob("*.jpg")):
        ours, theirs = (
            each.analyse(photo.read_bytes(), max_faces=1) for each in (in_integers, pipeline)
        )
        one, other = ours.faces[0].embedding, theirs.faces[0].embedding
        assert one is not None
        assert other is not None
        assert one @ other > 0.98
        # Another network found it.
        assert not np.array_equal(ours.faces[0].landmarks, theirs.faces[0].landmarks)


def test_what_runs_is_named(
    in_integers: FacePipeline,
    pipeline: FacePipeline,
    pack: ModelPack,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", LOGGER_NAME):
        build_pipeline(pack, Device.CPU, ImageLimits(), cpu=INT8).close()
    # On a CPU without instructions for 8-bit integers a warning is logged, too.
    loaded = [record for record in caplog.records if record.message == "network loaded"]
    files = [record.fields["file"] for record in loaded]  # type: ignore[attr-defined]
    assert files == ["detector.int8.onnx", "recogniser.onnx", "landmarks.onnx"]
    assert in_integers.provider == "CPUExecutionProvider, detector in int8"
    assert pipeline.provider == "CPUExecutionProvider"


def test_a_pack_without_it_is_refused(pack: ModelPack) -> None:
    detector = pack.detector.model_copy(update={"int8": None})
    plain = pack.model_copy(update={"detector": detector})
    needed = "pack default has no detector in 8-bit integers. Set it to auto or fp32, or make"
    with pytest.raises(PackError, match=needed):
        build_pipeline(plain, Device.CPU, ImageLimits(), cpu=INT8)


@pytest.mark.skipif(not has_openvino(), reason="needs the extra openvino")
def test_openvino_that_does_not_run_it_is_named(
    pack: ModelPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr("app.inference.openvino_model.OpenVinoModel.run", fail)
    options = CpuOptions(CpuEngine.OPENVINO, CpuPrecision.INT8)
    cure = r"detector.int8.onnx does not run.*no kernel.*LIKENESS_CPU_ENGINE=onnxruntime"
    with pytest.raises(DeviceError, match=cure):
        build_pipeline(pack, Device.CPU, ImageLimits(), cpu=options)


@pytest.mark.skipif(not has_openvino(), reason="needs the extra openvino")
def test_openvino_runs_it_too(
    pack: ModelPack, in_integers: FacePipeline, photos: Path, tmp_path: Path
) -> None:
    options = CpuOptions(CpuEngine.OPENVINO, CpuPrecision.INT8, 2, tmp_path)
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits(), cpu=options)
    assert pipeline.provider in {
        "OpenVINO fp32, detector in int8",
        "OpenVINO bf16, detector in int8",
    }
    data = (photos / "biden.jpg").read_bytes()
    (ours,), (theirs,) = (one.analyse(data, max_faces=1).faces for one in (pipeline, in_integers))
    assert ours.embedding is not None
    assert theirs.embedding is not None
    assert ours.embedding @ theirs.embedding > 0.98


def test_a_cpu_that_answers_otherwise_is_refused(
    pack: ModelPack, detector: Detector, tmp_path: Path
) -> None:
    """As one whose products overflow: landmarks elsewhere, or no face at all."""
    for scale, fault in ((1.5, r"finds 1 faces.*1, with landmarks 0\.[1-9]"), (0.0, "finds 0")):
        path = scaled(integer_file(pack), "heatmap" if scale == 0 else "landmarks", scale, tmp_path)
        wrong = Detector(OnnxModel(path, Device.CPU), pack.detector)
        with pytest.raises(DeviceError, match=fault):
            check_integers(wrong, detector)


def test_two_detectors_that_find_nothing_prove_nothing(
    pack: ModelPack, detector: Detector, tmp_path: Path
) -> None:
    nothing = scaled(integer_file(pack), "heatmap", 0.0, tmp_path)
    blind = Detector(OnnxModel(nothing, Device.CPU), pack.detector)
    with pytest.raises(DeviceError, match="neither it nor the detector in float32 finds the face"):
        check_integers(blind, blind)


def scaled(source: Path, output: str, scale: float, folder: Path) -> Path:
    """The network with one output multiplied."""
    model = onnx.load(source)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["right" if name == output else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "scale_of_it"))
    graph.node.append(onnx.helper.make_node("Mul", ["right", "scale_of_it"], [output]))
    path = folder / f"{output}.onnx"
    onnx.save(model, path)
    return path


def test_a_cpu_without_instructions_for_it_is_logged(
    pack: ModelPack,
    detector: Detector,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    integers = Detector(OnnxModel(integer_file(pack), Device.CPU), pack.detector)
    for cpu, logged in ((Cpu("GenuineIntel", frozenset({"avx512_vnni"})), False), (OLD_CPU, True)):
        monkeypatch.setattr(Cpu, "of_this_machine", lambda cpu=cpu: cpu)
        check_integers(integers, detector)
        assert ("no instructions for 8-bit integers" in caplog.text) is logged
