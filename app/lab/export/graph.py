"""An ONNX graph under construction; and a rewritten one, without PReLU and batch normalisation, so
that ONNX Runtime's CPU kernels keep their layout.

ONNX Runtime computes convolutions on the CPU in blocks of channels (NCHWc) and has no such kernel
for `PRelu` and `BatchNormalization`: it reorders the whole tensor before and after each of them. As

    prelu(x) = x + (1 - slope) * relu(-x)

it consists of convolutions with one weight a channel, `Relu` and `Add`, which all have one."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from app.lab.export.parity import ExportError, open_session_of

# 17 is old enough for every runtime the service meets and new enough for all operators used here;
# IR version 8 is the one that came with it.
OPSET = 17
IR_VERSION = 8
PRODUCER = "likeness"

Dimensions = list[int | str]


def read_model(path: Path) -> onnx.ModelProto:
    """The network a file holds. Raises ExportError where it cannot be read or is none."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # protobuf and onnx each raise classes of their own
        raise ExportError(f"{path} is not an ONNX file: {error}") from error
    return model


def converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same network in the operators of that set. Raises ExportError where that cannot be."""
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises bare RuntimeErrors
        raise ExportError(f"it cannot be converted to operator set {opset}: {error}") from error


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with fewer nodes: constants computed, batch normalisations folded. What
    ONNX Runtime does at its basic level, which stays within ONNX's own operators. Raises
    ExportError where it cannot open the network."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        open_session_of(model, options)
        made = read_model(path)
    # It lists operator sets of its own that no node of the network is of.
    used = {node.domain for node in made.graph.node} | {""}
    kept = [opset for opset in made.opset_import if opset.domain in used]
    del made.opset_import[:]
    made.opset_import.extend(kept)
    made.producer_name, made.producer_version = PRODUCER, ""
    return made


class GraphBuilder:
    """Collects nodes and weights, then makes a model of those its outputs depend on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Dimensions) -> str:
        """Declare a float32 graph input; a dimension given as text is free."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def output(self, name: str, value: str, shape: Dimensions) -> None:
        """Declare that `value` leaves the graph as `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Store a constant under `name` and return the name."""
        self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append an operator with one output called `name` and return the name."""
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def build(self) -> onnx.ModelProto:
        """The finished model, without the nodes and weights no output needs."""
        nodes = live_nodes(self._nodes, {output.name for output in self._outputs})
        used = {name for node in nodes for name in node.input}
        weights = [weight for name, weight in self._weights.items() if name in used]
        graph = helper.make_graph(nodes, self._name, self._inputs, self._outputs, weights)
        return helper.make_model(
            graph,
            producer_name=PRODUCER,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )


def live_nodes(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """Those of `nodes` (in the order they run) that `wanted` values depend on."""
    needed, live = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            live.append(node)
    return live[::-1]


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
