"""Rewrites PReLU and batch normalisation so that ONNX Runtime's CPU kernels keep their layout.

ONNX Runtime computes convolutions on the CPU in blocks of channels (NCHWc) and has no such kernel
for `PRelu` and `BatchNormalization`: it reorders the whole tensor before and after each of them. As

    prelu(x) = x + (1 - slope) * relu(-x)

it consists of convolutions with one weight a channel, `Relu` and `Add`, which all have one.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

FloatArray = NDArray[np.float32]


def without_prelu(source: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a network in which every `PRelu` with one slope a channel, or one for all channels,
    of an (n, channels, height, width) tensor is rewritten, and every `BatchNormalization` of one
    is a convolution of one weight a channel. Others stay as they are. Outputs differ by rounding.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    channels = _channels(model)
    made = _Made()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        count = channels.get(node.input[0]) if node.input else None
        replaced: list[onnx.NodeProto] | None = None
        if count and node.op_type == "PRelu" and node.input[1] in constants:
            replaced = _prelu(node, numpy_helper.to_array(constants[node.input[1]]), count, made)
        elif count and node.op_type == "BatchNormalization" and len(node.output) == 1:
            replaced = _batch_normalisation(node, constants, made)
        nodes += [node] if replaced is None else replaced
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(made.constants)
    _drop_unused(graph)
    return model


class _Made:
    """The constants of the rewritten nodes."""

    def __init__(self) -> None:
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: FloatArray) -> str:
        self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def a_channel(
        self, x: str, weights: FloatArray, out: str, bias: FloatArray | None = None
    ) -> Any:
        """The node that multiplies each channel of `x` by its weight."""
        kernel = self.constant(f"{out}_weights", weights.reshape(-1, 1, 1, 1))
        inputs = [x, kernel] if bias is None else [x, kernel, self.constant(f"{out}_bias", bias)]
        return helper.make_node("Conv", inputs, [out], name=out, group=len(weights),
                                kernel_shape=[1, 1])  # fmt: skip


def _prelu(
    node: onnx.NodeProto, slope: NDArray[Any], channels: int, made: _Made
) -> list[onnx.NodeProto] | None:
    # Against (n, channels, height, width), slopes broadcast from the right.
    if slope.dtype != np.float32 or slope.size not in (1, channels):
        return None
    if slope.size > 1 and slope.shape[-3:] != (channels, 1, 1):
        return None
    x, (y,) = node.input[0], node.output
    slopes = np.broadcast_to(slope.reshape(-1), (channels,))
    return [
        made.a_channel(x, np.full(channels, -1, np.float32), f"{y}_negated"),
        helper.make_node("Relu", [f"{y}_negated"], [f"{y}_below_zero"], name=f"{y}_below_zero"),
        made.a_channel(f"{y}_below_zero", 1 - slopes, f"{y}_correction"),
        helper.make_node("Add", [f"{y}_correction", x], [y], name=node.name or y),
    ]


def _batch_normalisation(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], made: _Made
) -> list[onnx.NodeProto] | None:
    if not all(name in constants for name in node.input[1:5]):
        return None
    arrays = [numpy_helper.to_array(constants[name]) for name in node.input[1:5]]
    if any(one.dtype != np.float32 for one in arrays):
        return None
    scale, offset, mean, variance = (one.astype(np.float64) for one in arrays)
    epsilon = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)
    weights = scale / np.sqrt(variance + epsilon)
    bias = (offset - mean * weights).astype(np.float32)
    return [made.a_channel(node.input[0], weights.astype(np.float32), node.output[0], bias)]


def _channels(model: onnx.ModelProto) -> dict[str, int]:
    """The number of channels of every (n, channels, height, width) tensor where it is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = value.type.tensor_type.shape.dim
        if len(shape) == 4 and shape[1].dim_value:
            found[value.name] = shape[1].dim_value
    return found


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove weights that no node takes any more."""
    taken = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in taken]
    del graph.initializer[:]
    graph.initializer.extend(kept)
