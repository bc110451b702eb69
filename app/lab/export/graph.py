"""An ONNX graph under construction."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.lab.export.artefact import ExportError

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


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with fewer nodes: constants computed, batch normalisations folded. What
    ONNX Runtime does at its basic level, which stays within ONNX's own operators."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
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
