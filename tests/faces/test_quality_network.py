"""A quality network as a member of a pack: one number for each aligned face."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from app.errors import PackError
from app.faces.loading import build_pipeline
from app.faces.quality_network import QualityNetwork
from app.imaging import ImageLimits
from app.inference.pack_spec import ModelPack, QualitySpec
from app.inference.packs import digest
from app.inference.session import OnnxModel
from app.settings import Device

SPEC = QualitySpec(file="q.onnx", sha256="0" * 64, colour="rgb", mean=127.5, std=127.5)


@pytest.fixture
def brightness_network(tmp_path: Path) -> Path:
    """The mean of what goes in: a stand-in whose answer is known."""
    entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 112, 112])
    answer = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch", 1, 1, 1])
    node = helper.make_node("GlobalAveragePool", ["colours"], ["score"])
    mean = helper.make_node("ReduceMean", ["input"], ["colours"], axes=[1], keepdims=1)
    graph = helper.make_graph([mean, node], "brightness", [entry], [answer])
    path = tmp_path / "q.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_a_score_a_face(brightness_network: Path) -> None:
    network = QualityNetwork(OnnxModel(brightness_network, Device.CPU), SPEC, 112)
    crops = np.stack([np.full((112, 112, 3), value, np.uint8) for value in (0, 255)])
    np.testing.assert_allclose(network.scores(crops), [-1, 1], atol=1e-6)
    assert network.scores(crops[:0]).shape == (0,)


def test_it_sees_the_recogniser_s_crops(brightness_network: Path) -> None:
    with pytest.raises(PackError, match="faces of 112 pixels, the recogniser 160"):
        QualityNetwork(OnnxModel(brightness_network, Device.CPU), SPEC, 160)


def test_one_number_and_no_more(pack: ModelPack) -> None:
    with pytest.raises(PackError, match="answers 192 numbers a face, not one"):
        QualityNetwork(OnnxModel(pack.recogniser_path, Device.CPU), SPEC, 112)


def test_faces_of_a_pack_with_one_carry_its_score(
    pack: ModelPack, brightness_network: Path, photos: Path
) -> None:
    spec = SPEC.model_copy(
        update={"file": str(brightness_network), "sha256": digest(brightness_network)}
    )
    pipeline = build_pipeline(pack.model_copy(update={"quality": spec}), Device.CPU, ImageLimits())
    face = pipeline.analyse((photos / "obama.jpg").read_bytes(), max_faces=1).faces[0]
    assert face.quality.quality_score is not None
    assert -1 < face.quality.quality_score < 1
