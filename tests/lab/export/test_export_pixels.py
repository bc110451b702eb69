"""Networks that take pixels: the same answers, through the same detector and recogniser."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.faces.loading import build_pipeline
from app.imaging import ImageLimits
from app.inference.pack_spec import ModelPack
from app.inference.packs import load_pack
from app.inference.session import OnnxModel
from app.lab.export.artefact import ExportError, sha256
from app.lab.export.faces import Normalisation
from app.lab.export.pixels import export_pixels
from app.settings import Device

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
