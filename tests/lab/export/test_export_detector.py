"""Detectors freed of their fixed shapes: ours, made fixed again, and small ones of our own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.lab.export import detector, parity
from app.lab.export.parity import ExportError, ParityError, check

MODELS = Path(__file__).resolve().parents[3] / "models"
OPSET = 11


def _value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
    image: onnx.ValueInfoProto,
) -> Path:
    """An old-style file: IR version 4, weights listed among the inputs, a counter nobody reads."""
    counter = numpy_helper.from_array(np.array(7, np.int64), "bn.num_batches_tracked")
    weights = [*weights, counter]
    inputs = [image]
    inputs += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights]
    graph = helper.make_graph(nodes, "old", inputs, outputs, weights)
    opset = [helper.make_opsetid("", OPSET)]
    onnx.save(helper.make_model(graph, ir_version=4, opset_imports=opset), path)
    return path


def _weight(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).normal(0, 1e-4, shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def _centerface(path: Path, mix_batch: bool = False) -> Path:
    """Four maps at a quarter of the size; `mix_batch` lets images see each other."""
    weights = [_weight("w" * (1 + i), c, 3, 4, 4) for i, c in enumerate((1, 2, 2, 10))]
    nodes, source = [], "image"
    if mix_batch:
        nodes.append(helper.make_node("ReduceMean", ["image"], ["mean"], axes=[0], keepdims=1))
        nodes.append(helper.make_node("Sub", ["image", "mean"], ["centred"]))
        source = "centred"
    for weight in weights:
        name = f"5{weight.dims[0]}{len(weight.name)}"
        nodes.append(helper.make_node("Conv", [source, weight.name], [name], strides=[4, 4]))
    outputs = [_value(node.output[0], [4, w.dims[0], 8, 8])
               for node, w in zip(nodes[-4:], weights, strict=True)]  # fmt: skip
    return _save(path, nodes, outputs, weights, _value("image", [4, 3, 32, 32]))


def _scrfd(path: Path) -> Path:
    """Nine lists, flattened the way SCRFD's exporter does it: right for one image only."""
    nodes, outputs, weights = [], [], []
    for values in (1, 4, 10):
        shape = numpy_helper.from_array(np.array([-1, values], np.int64), f"shape{values}")
        weights.append(shape)
        for stride in (8, 16, 32):
            name = f"{values}_{stride}"
            weights.append(_weight(f"w{name}", 2 * values, 3, stride, stride))
            nodes += [
                helper.make_node("Conv", ["image", f"w{name}"], [f"c{name}"],
                                 strides=[stride, stride]),
                helper.make_node("Transpose", [f"c{name}"], [f"t{name}"], perm=[2, 3, 0, 1]),
                helper.make_node("Reshape", [f"t{name}", shape.name], [f"o{name}"]),
            ]  # fmt: skip
            outputs.append(_value(f"o{name}", [2 * (640 // stride) ** 2, values]))
    return _save(path, nodes, outputs, weights, _value("image", [1, 3, "?", "?"]))


def _shapes(path: Path) -> dict[str, list[int | str]]:
    graph = onnx.load(path).graph
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }


def test_centerface_is_freed(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    proof = detector.export_detector(_centerface(tmp_path / "source.onnx"), out)
    assert proof.architecture == "centerface"
    assert proof.batch_difference == 0
    assert _shapes(out) == {
        "input": ["batch", 3, "height", "width"],
        "heatmap": ["batch", 1, "rows", "columns"],
        "scale": ["batch", 2, "rows", "columns"],
        "offset": ["batch", 2, "rows", "columns"],
        "landmarks": ["batch", 10, "rows", "columns"],
    }
    model = onnx.load(out)
    assert model.opset_import[0].version >= 17
    assert len(model.graph.input) == 1
    assert [weight.name for weight in model.graph.initializer] == ["w", "ww", "www", "wwww"]


def test_scrfd_keeps_images_apart(tmp_path: Path) -> None:
    source, out = _scrfd(tmp_path / "source.onnx"), tmp_path / "out.onnx"
    detector.export_detector(source, out)
    names = [f"{kind}_{s}" for kind in ("score", "box", "landmarks") for s in (8, 16, 32)]
    assert list(_shapes(out)) == ["input", *names]
    images = detector._photos(2, (64, 96))
    batch = parity.run(parity.open_session(out), images)
    assert batch[0].shape == (2, 2 * 8 * 12, 1)
    for index in range(2):
        original = parity.open_session(source).run(None, {"image": images[index : index + 1]})
        for mine, theirs in zip(batch, original, strict=True):
            np.testing.assert_allclose(mine[index], theirs, atol=1e-5)


def test_images_that_see_each_other_are_refused(tmp_path: Path) -> None:
    source = _centerface(tmp_path / "source.onnx", mix_batch=True)
    out = tmp_path / "out" / "detector.onnx"
    with pytest.raises(ParityError, match="differ"):
        detector.export_detector(source, out)
    assert list(out.parent.iterdir()) == []


def test_a_failure_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    out = tmp_path / "detector.onnx"
    out.write_bytes(b"proven before")
    with pytest.raises(ParityError):
        detector.export_detector(_centerface(tmp_path / "source.onnx", mix_batch=True), out)
    assert out.read_bytes() == b"proven before"


def test_changed_weights_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = detector.make_dynamic

    def faulty(source: onnx.ModelProto, architecture: detector.DetectorFamily) -> onnx.ModelProto:
        model = honest(source, architecture)
        weight = model.graph.initializer[1]
        changed = numpy_helper.to_array(weight) * 1.01
        weight.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), weight.name))
        return model

    monkeypatch.setattr(detector, "make_dynamic", faulty)
    with pytest.raises(ParityError):
        detector.export_detector(_centerface(tmp_path / "source.onnx"), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_our_own_detector_survives_being_fixed(tmp_path: Path) -> None:
    """The shipped network with the shapes of its source, exported again."""
    model = onnx.load(MODELS / "default" / "detector.onnx")
    fixed = {"batch": 10, "height": 32, "width": 32, "rows": 8, "columns": 8}
    for value in [*model.graph.input, *model.graph.output]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_value = fixed[dimension.dim_param]
    source, out = tmp_path / "source.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    detector.export_detector(source, out)
    assert out.read_bytes() == (MODELS / "default" / "detector.onnx").read_bytes()


def test_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="neither"):
        detector.export_detector(MODELS / "default" / "recogniser.onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize("content", [None, b"not a network"])
def test_another_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "source.onnx"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(ExportError, match=r"source\.onnx"):
        detector.export_detector(source, tmp_path / "out.onnx")


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["absent"], ["y"])
    image, answer = _value("image", [1, 3]), _value("y", [1, 3])
    path = _save(tmp_path / "bad.onnx", [node], [answer], [], image)
    with pytest.raises(ExportError, match="not valid ONNX"):
        check(path)
