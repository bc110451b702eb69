"""PReLU and batch normalisation rewritten for ONNX Runtime's CPU kernels."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.lab.export import parity
from app.lab.export.graph import converted, simplified, without_prelu
from app.lab.export.parity import ExportError

C = 6
RANDOM = np.random.default_rng(5)


def network(node: onnx.NodeProto, constants: dict[str, NDArray[Any]], rank: int = 4) -> Any:
    """A network of one node from `x` to `y`."""
    shape = ["batch", C, 5, 7][:rank]
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def answers(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return parity.run(parity.open_session_of(model), x)[0]


def slopes(*shape: int) -> NDArray[np.float32]:
    return RANDOM.uniform(-0.5, 1.5, shape).astype(np.float32)


@pytest.mark.parametrize("slope", [slopes(C, 1, 1), slopes(1, C, 1, 1), slopes(1)], ids=str)
def test_prelu_of_a_slope_a_channel(slope: NDArray[np.float32]) -> None:
    source = network(helper.make_node("PRelu", ["x", "slope"], ["y"]), {"slope": slope})
    rewritten = without_prelu(source)
    onnx.checker.check_model(rewritten, full_check=True)
    assert operators(rewritten) == {"Conv": 2, "Relu": 1, "Add": 1}
    assert "slope" not in {one.name for one in rewritten.graph.initializer}
    x = RANDOM.standard_normal((3, C, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(answers(rewritten, x), answers(source, x), atol=1e-6)


@pytest.mark.parametrize(
    ("slope", "rank"), [(slopes(7), 4), (slopes(C, 5, 7), 4), (slopes(C), 2)], ids=str
)
def test_other_prelu_stays(slope: NDArray[np.float32], rank: int) -> None:
    source = network(helper.make_node("PRelu", ["x", "slope"], ["y"]), {"slope": slope}, rank)
    assert without_prelu(source) == source


def test_a_slope_that_is_computed_stays() -> None:
    source = network(helper.make_node("PRelu", ["x", "x"], ["y"]), {})
    assert operators(without_prelu(source)) == {"PRelu": 1}


def test_batch_normalisation() -> None:
    names = ["scale", "offset", "mean", "variance"]
    constants = {name: RANDOM.uniform(0.5, 2, C).astype(np.float32) for name in names}
    node = helper.make_node("BatchNormalization", ["x", *names], ["y"], epsilon=1e-3)
    source = network(node, constants)
    rewritten = without_prelu(source)
    assert operators(rewritten) == {"Conv": 1}
    x = RANDOM.standard_normal((2, C, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(answers(rewritten, x), answers(source, x), atol=1e-5)


def test_what_the_libraries_refuse_is_an_export_error() -> None:
    model = network(helper.make_node("Dropout", ["x"], ["y"], is_test=0), {})
    model.opset_import[0].version = 6  # in training, which newer operators do not have
    with pytest.raises(ExportError, match=r"operator set 17: .*is_test"):
        converted(model, 17)
    model = network(helper.make_node("Odd", ["x"], ["y"], domain="com.example"), {})
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(ExportError, match=r"cannot open the network: .*Odd"):
        simplified(model)
    model = network(helper.make_node("Abs", ["x"], ["y"]), {})
    with pytest.raises(ExportError, match="does not run on an input of 1x2x3: "):
        parity.run(parity.open_session_of(model), np.zeros((1, 2, 3), np.float32))
