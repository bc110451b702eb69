"""Variants of an ONNX recogniser: precision, input (of pixels, too), output, batch; all proven on
faces."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.disk import sha256
from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.lab.export import parity
from app.lab.export.faces import Normalisation, align_folder
from app.lab.export.parity import ExportError, ParityError
from app.lab.export.precision import Precision
from app.lab.export.recogniser import (
    Options,
    SourceRecogniser,
    export_pixels,
    export_recogniser,
    install_recogniser,
    read_onnx,
)
from app.settings import Device
from scripts.tflite_export.convert import convert
from scripts.tflite_export.network import read

CENTERFACE = Normalisation(mean=0, std=1, rgb=True)
MOBILEFACENET = Normalisation(mean=127.5, std=128, rgb=True)


@pytest.fixture(scope="module")
def pixel_pack(pack: ModelPack, tmp_path_factory: pytest.TempPathFactory) -> ModelPack:
    """The default pack with both networks folded."""
    folder = tmp_path_factory.mktemp("packs") / "pixels"
    shutil.copytree(pack.folder, folder)
    text = (folder / "pack.toml").read_text()
    for name, given in (("detector", CENTERFACE), ("recogniser", MOBILEFACENET)):
        file = folder / f"{name}.onnx"
        before = sha256(file)
        assert export_pixels(pack.folder / file.name, file, given) < 1e-2
        text = text.replace(before, sha256(file))
    (folder / "pack.toml").write_text(text)
    return load_pack(str(folder))


def test_the_input_is_pixels(pixel_pack: ModelPack) -> None:
    detector = OnnxModel(pixel_pack.detector_path, Device.CPU)
    recogniser = OnnxModel(pixel_pack.recogniser_path, Device.CPU)
    assert detector.takes_pixels
    assert recogniser.takes_pixels
    assert (detector.fixed_size, recogniser.fixed_size) == (None, (112, 112))
    assert recogniser.dynamic_batch


def test_a_pack_of_such_networks_answers_the_same(
    pack: ModelPack, pixel_pack: ModelPack, group_photo: bytes
) -> None:
    ours, folded = (
        build_pipeline(one, Device.CPU, ImageLimits()).analyse(group_photo, max_faces=10)
        for one in (pack, pixel_pack)
    )
    assert len(ours.faces) == len(folded.faces) == 6
    for a, b in zip(ours.faces, folded.faces, strict=True):
        assert np.abs(a.landmarks - b.landmarks).max() < 0.01
        assert a.embedding is not None
        assert a.embedding @ b.embedding > 0.99999


def test_a_wrong_normalisation_is_not_kept(pack: ModelPack, tmp_path: Path) -> None:
    """The proof asks the source; here the source is broken between reading and proving."""
    source, out = tmp_path / "source.onnx", tmp_path / "out.onnx"
    model = onnx.load(pack.recogniser_path)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, source)
    with pytest.raises(ExportError, match="one float32 input"):
        export_pixels(source, out, MOBILEFACENET)
    assert not out.exists()


def test_a_file_that_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"not a network")
    with pytest.raises(ExportError, match="is not an ONNX file"):
        export_pixels(tmp_path / "a.onnx", tmp_path / "out.onnx", CENTERFACE)


def test_a_source_that_answers_no_single_face_is_not_installed(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, 3, 8, 8]) for n in "ab"]
    graph = helper.make_graph([helper.make_node("Abs", ["a"], ["b"])], "g", values[:1], values[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), tmp_path / "a.onnx")
    with pytest.raises(ExportError, match="does not run on an input of 1x3x8x8"):
        install_recogniser(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_fixed_batches_and_sizes_stay_fixed(tmp_path: Path) -> None:
    shape = [2, 3, 8, 12]
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    graph = helper.make_graph([helper.make_node("Abs", ["image"], ["out"])], "g", [value], [out])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), tmp_path / "a.onnx")
    given = Normalisation(mean=100, std=3, rgb=False)
    assert export_pixels(tmp_path / "a.onnx", tmp_path / "b.onnx", given) < 1e-3
    assert OnnxModel(tmp_path / "b.onnx", Device.CPU).input_shape == [2, 8, 12, 3]


GIVEN = Normalisation(mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0), rgb=False)
Faces = NDArray[np.uint8]


@pytest.fixture
def source(small_recogniser: Path, tmp_path: Path) -> SourceRecogniser:
    path = tmp_path / "source.onnx"
    onnx.save(convert(read(small_recogniser)), path)
    return read_onnx(path, GIVEN)


@pytest.fixture
def faces(make_images: Callable[..., Path]) -> Faces:
    return align_folder(make_images(24), 16)


def test_photos_of_the_networks_size_are_taken_for_faces(faces: Faces) -> None:
    assert faces.shape == (24, 16, 16, 3)


def test_too_few_faces_prove_nothing(make_images: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="19 faces were found"):
        align_folder(make_images(19), 16)
    with pytest.raises(ExportError, match="not a folder"):
        align_folder(tmp_path / "absent", 16)


def test_pixels_go_in_and_unit_vectors_come_out(
    source: SourceRecogniser, faces: Faces, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    found = export_recogniser(source, out, faces, Options(pixels=True, unit=True))
    assert found.agreement.minimum_cosine > 0.999999
    session = parity.open_session(out)
    assert session.get_inputs()[0].type == "tensor(uint8)"
    answers = parity.run(session, np.ascontiguousarray(faces[..., ::-1]))[0]
    expected = source.answer(GIVEN.apply(faces))
    np.testing.assert_allclose(np.linalg.norm(answers, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        answers, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5
    )


def test_a_batch_can_be_fixed(source: SourceRecogniser, faces: Faces, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    export_recogniser(source, out, faces, Options(batch=5))
    assert parity.open_session(out).get_inputs()[0].shape == [5, 3, 16, 16]


def test_a_simpler_graph_answers_the_same(
    source: SourceRecogniser, faces: Faces, tmp_path: Path
) -> None:
    """A constant that is computed."""
    graph, size = source.model.graph, len(source.answer(GIVEN.apply(faces[:1]))[0])
    graph.node[-1].output[0] = "own"
    for name, value in (("one", 1.0), ("half", 0.5)):
        graph.initializer.append(numpy_helper.from_array(np.full(size, value, np.float32), name))
    graph.node.extend(
        [
            helper.make_node("Add", ["one", "half"], ["scale"], name="computed"),
            helper.make_node("Mul", ["own", "scale"], ["embedding"], name="enlarge"),
        ]
    )
    out, plain = tmp_path / "out.onnx", tmp_path / "plain.onnx"
    onnx.save(source.model, tmp_path / "longer.onnx")
    longer = read_onnx(tmp_path / "longer.onnx", GIVEN)
    found = export_recogniser(longer, out, faces, Options(simplify=True))
    export_recogniser(longer, plain, faces, Options())
    assert found.agreement.minimum_cosine > 0.999999
    counts = [len(onnx.load(path).graph.node) for path in (out, plain)]
    assert counts[0] < counts[1]


def test_a_lowest_cosine_of_0_is_one(
    source: SourceRecogniser, faces: Faces, tmp_path: Path
) -> None:
    def less_alike(blob: NDArray[np.float32]) -> NDArray[np.float32]:
        answers = source.answer(blob)
        return answers + np.roll(answers, 1, axis=1)

    other = replace(source, answer=less_alike)
    with pytest.raises(ParityError, match="is required"):
        export_recogniser(other, tmp_path / "out.onnx", faces, Options(unit=True))
    found = export_recogniser(
        other, tmp_path / "out.onnx", faces, Options(unit=True, minimum_cosine=0.0)
    )
    assert 0 < found.agreement.minimum_cosine < 0.99


def test_an_opset_can_be_chosen(source: SourceRecogniser, faces: Faces, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    export_recogniser(source, out, faces, Options(opset=20))
    assert onnx.load(out).opset_import[0].version == 20


def test_half_precision_halves_the_file(
    source: SourceRecogniser, faces: Faces, tmp_path: Path
) -> None:
    half, whole = tmp_path / "half.onnx", tmp_path / "whole.onnx"
    found = export_recogniser(source, half, faces, Options(precision=Precision.FP16))
    export_recogniser(source, whole, faces, Options())
    assert 0.999 < found.agreement.minimum_cosine < 1
    assert found.kept == ()
    weights = {weight.data_type for weight in onnx.load(half).graph.initializer}
    assert TensorProto.FLOAT not in weights
    assert half.stat().st_size < 0.75 * whole.stat().st_size


def test_what_exceeds_half_precision_stays_whole(
    source: SourceRecogniser, faces: Faces, tmp_path: Path
) -> None:
    """The output, a hundred thousand times as large and then as small again."""
    graph = source.model.graph
    graph.node[-1].output[0] = "own"
    for name, value in (("large", 1e5), ("small", 1e-5)):
        graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    graph.node.extend(
        [
            helper.make_node("Mul", ["own", "large"], ["huge"], name="enlarge"),
            helper.make_node("Mul", ["huge", "small"], ["embedding"], name="reduce"),
        ]
    )
    loud = np.abs(source.answer(GIVEN.apply(faces))).max()
    assert loud * 1e5 > 65504
    out = tmp_path / "out.onnx"
    found = export_recogniser(source, out, faces, Options(precision=Precision.FP16))
    assert set(found.kept) == {"enlarge", "reduce"}
    assert found.agreement.minimum_cosine >= 0.999


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_DYNAMIC])
def test_integers(
    precision: Precision, source: SourceRecogniser, faces: Faces, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    options = Options(precision=precision, minimum_cosine=0.9)
    found = export_recogniser(source, out, faces, options, calibration=faces)
    assert 0.9 < found.agreement.minimum_cosine < 0.99999999
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert kinds & {"QuantizeLinear", "ConvInteger"}


def test_integers_need_ranges(source: SourceRecogniser, faces: Faces, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="folder of photos"):
        export_recogniser(source, tmp_path / "o.onnx", faces, Options(precision=Precision.INT8))


def test_an_export_below_its_parity_is_not_written(
    source: SourceRecogniser, faces: Faces, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    options = Options(precision=Precision.FP16, minimum_cosine=0.9999999999)
    with pytest.raises(ParityError, match="cosine of"):
        export_recogniser(source, out, faces, options)
    assert not out.exists()


def test_what_is_no_recogniser_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("no network")
    with pytest.raises(ExportError, match="not an ONNX file"):
        read_onnx(path, GIVEN)
    with pytest.raises(ExportError, match="cannot be read"):
        read_onnx(tmp_path / "absent.onnx", GIVEN)
