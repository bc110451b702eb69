"""Small networks of our own, converted and compared with the TFLite interpreter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from app.lab.export import parity
from app.lab.export.faces import Normalisation
from app.lab.export.parity import ExportError, ParityError, serialise
from scripts.tflite_export import convert as conversion
from scripts.tflite_export.convert import convert, export_tflite, run_tflite
from scripts.tflite_export.network import UnsupportedOperator, read

Net = Any  # the builder of conftest.py
TinyNetwork = Callable[[tuple[int, ...]], Net]


def _compare(source: Path, batch: int = 3) -> onnx.ModelProto:
    """Assert that the conversion answers like the interpreter, and return it."""
    network = read(source)
    model = convert(network)
    converted = source.with_suffix(".onnx")
    converted.write_bytes(serialise(model))
    onnx.checker.check_model(model, full_check=True)
    _, height, width, channels = network.tensors[network.inputs[0]].shape
    images = np.random.default_rng(0).normal(0, 1, (batch, channels, height, width))
    pixels = images.astype(np.float32)
    expected = run_tflite(source, pixels)
    actual = parity.run(parity.open_session(converted), pixels)[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    return model


def _kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(9, 12), (16, 15)])
def test_same_padding(
    tiny_network: TinyNetwork, tmp_path: Path, kernel: int, stride: int, size: tuple[int, int]
) -> None:
    net = tiny_network((1, *size, 2))
    x = net.convolution(net.input, 4, kernel=kernel, stride=stride)
    _compare(net.write(tmp_path / "net.tflite", net.flatten(x)))


def test_same_padding_of_an_even_size_is_one_sided(
    tiny_network: TinyNetwork, tmp_path: Path
) -> None:
    net = tiny_network((1, 8, 8, 1))
    x = net.convolution(net.input, 2, stride=2)
    model = _compare(net.write(tmp_path / "net.tflite", net.flatten(x)))
    pads = next(a for a in model.graph.node[0].attribute if a.name == "pads")
    assert list(pads.ints) == [0, 0, 1, 1]


def test_dilation(tiny_network: TinyNetwork, tmp_path: Path) -> None:
    net = tiny_network((1, 12, 12, 2))
    x = net.convolution(net.input, 4, dilation=2)
    _compare(net.write(tmp_path / "net.tflite", net.flatten(x)))


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("same", [True, False])
def test_depthwise(tiny_network: TinyNetwork, tmp_path: Path, multiplier: int, same: bool) -> None:
    net = tiny_network((2, 10, 10, 3))
    x = net.depthwise(net.input, multiplier=multiplier, stride=2, same=same, relu=True)
    _compare(net.write(tmp_path / "net.tflite", net.flatten(x)))


@pytest.mark.parametrize("half_apart", [True, False])
def test_prelu_is_put_together_again(
    tiny_network: TinyNetwork, tmp_path: Path, half_apart: bool
) -> None:
    net = tiny_network((1, 6, 6, 5))
    x = net.prelu(net.input, half_apart)
    model = _compare(net.write(tmp_path / "net.tflite", net.flatten(x)))
    assert _kinds(model) == ["PRelu", "Transpose", "Reshape", "Identity"]


def test_what_only_looks_like_a_prelu_stays_apart(
    tiny_network: TinyNetwork, tmp_path: Path
) -> None:
    """relu(x) + slope * (y - |y|) of two different tensors."""
    net = tiny_network((1, 4, 4, 3))
    x, y = net.convolution(net.input, 3), net.convolution(net.input, 3)
    shape = (1, 4, 4, 3)
    absolute = net.operator("ABS", [y], shape)
    difference = net.subtract(y, absolute)
    total = net.add(net.operator("RELU", [x], shape), net.multiply(difference, net.weights(3)))
    model = _compare(net.write(tmp_path / "net.tflite", net.flatten(total)))
    assert "PRelu" not in _kinds(model)


def test_reshape_keeps_the_order_of_channels_last(
    tiny_network: TinyNetwork, tmp_path: Path
) -> None:
    net = tiny_network((2, 3, 2, 4))
    model = _compare(net.write(tmp_path / "net.tflite", net.flatten(net.input)), batch=5)
    assert "Transpose" in _kinds(model)


def test_a_whole_recogniser(small_recogniser: Path) -> None:
    model = _compare(small_recogniser, batch=7)
    assert _kinds(model).count("PRelu") == 2
    assert not {"Abs", "Sub", "Mul", "Relu"} & set(_kinds(model))
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 3, 16, 16]
    dimensions = model.graph.output[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", 192]
    assert model.opset_import[0].version >= 17


def test_an_unknown_operator_is_named(tiny_network: TinyNetwork, tmp_path: Path) -> None:
    net = tiny_network((1, 4, 4, 3))
    x = net.operator("FLOOR", [net.input], (1, 4, 4, 3))
    network = read(net.write(tmp_path / "net.tflite", net.flatten(x)))
    with pytest.raises(UnsupportedOperator, match="FLOOR"):
        convert(network)


def test_an_unknown_activation_is_named(tiny_network: TinyNetwork, tmp_path: Path) -> None:
    net = tiny_network((1, 4, 4, 3))
    x = net.depthwise(net.input, relu=True)
    net._operators[-1].builtinOptions.fusedActivationFunction = 4  # TANH
    network = read(net.write(tmp_path / "net.tflite", net.flatten(x)))
    with pytest.raises(UnsupportedOperator, match=r"DEPTHWISE_CONV_2D.*activation 4"):
        convert(network)


def test_other_types_than_float32_are_refused(tiny_network: TinyNetwork, tmp_path: Path) -> None:
    net = tiny_network((1, 4, 4, 3))
    net._tensors[net.input].type = 9  # INT8
    with pytest.raises(ExportError, match="INT8"):
        read(net.write(tmp_path / "net.tflite", net.flatten(net.input)))


@pytest.mark.parametrize("content", [b"", b"no network at all"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(content)
    with pytest.raises(ExportError, match="not a TFLite file"):
        read(path)


def test_export_proves_and_writes(
    small_recogniser: Path, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "recogniser.onnx"
    found = export_tflite(small_recogniser, out, make_images(21), Normalisation())
    assert found.faces == 21
    assert found.minimum_cosine > 0.9999999
    assert [path.name for path in out.parent.iterdir()] == ["recogniser.onnx"]


@pytest.mark.parametrize("fault", ["pads", "slope"])
def test_a_wrong_translation_is_never_written(
    small_recogniser: Path,
    make_images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    if fault == "pads":  # the symmetric ones of PyTorch
        monkeypatch.setattr(
            conversion, "_pads", lambda _, size, kernel, *rest: [kernel[0] // 2] * 4
        )
    else:
        monkeypatch.setattr(
            conversion, "_channel_first", lambda constant: constant[:, None, None] / 2
        )
    out = tmp_path / "out" / "recogniser.onnx"
    with pytest.raises(ParityError):
        export_tflite(small_recogniser, out, make_images(), Normalisation())
    assert list(out.parent.iterdir()) == []


def test_too_few_or_wrong_faces_are_refused(
    small_recogniser: Path, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(ExportError, match="at least 20"):
        export_tflite(small_recogniser, out, make_images(19), Normalisation())
    with pytest.raises(ExportError, match="20x20"):
        export_tflite(small_recogniser, out, make_images(20, size=20), Normalisation())
    with pytest.raises(ExportError, match="not a folder"):
        export_tflite(small_recogniser, out, tmp_path / "absent", Normalisation())
    assert not out.exists()
