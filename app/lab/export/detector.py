"""Makes a published face detector free in batch, height and width.

Published files fix the batch, sometimes the size too, in their shapes or in the operators that
flatten their heads. The weights are not touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from app.lab.export import parity
from app.lab.export.graph import (
    IR_VERSION,
    OPSET,
    PRODUCER,
    Dimensions,
    converted,
    live_nodes,
    read_model,
)
from app.lab.export.parity import ExportError, publish

INPUT = "input"
# Both sizes are multiples of 32, the deepest stride: neither architecture takes others.
PROOF_SIZES = ((256, 320), (416, 352))
PROOF_BATCH = 3
# The upgrade of the operator set may re-order sums, no more.
SOURCE_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Output:
    """One output: its name here and its shape, free dimensions as text."""

    name: str
    shape: Dimensions


@dataclass(frozen=True, slots=True)
class DetectorFamily:
    """What is known of a family of detectors; outputs stand in the order the source has them.

    `batch_tolerance` is how far an image's answer may depend on its neighbours in a batch.
    """

    name: str
    outputs: tuple[Output, ...]
    batch_tolerance: float


def _map(name: str, channels: int) -> Output:
    """A map with one cell for every 4 x 4 pixels."""
    return Output(name, ["batch", channels, "rows", "columns"])


def _list(name: str, stride: int, values: int) -> Output:
    """A row of values an anchor, two anchors a cell of `stride` x `stride` pixels."""
    return Output(f"{name}_{stride}", ["batch", f"anchors_{stride}", values])


CENTERFACE = DetectorFamily(
    name="centerface",
    outputs=(_map("heatmap", 1), _map("scale", 2), _map("offset", 2), _map("landmarks", 10)),
    batch_tolerance=0.0,
)
SCRFD = DetectorFamily(
    name="scrfd",
    outputs=tuple(
        _list(name, stride, values)
        for name, values in (("score", 1), ("box", 4), ("landmarks", 10))
        for stride in (8, 16, 32)
    ),
    batch_tolerance=1e-5,
)


@dataclass(frozen=True, slots=True)
class DetectorProof:
    """The largest absolute differences met: to the source, and between batched and alone."""

    architecture: str
    source_difference: float
    batch_difference: float


def export_detector(source: Path, out: Path) -> DetectorProof:
    """Rewrite the detector at `source` and write it to `out` once it is proven.

    The proof: same outputs as the source at a size the source takes, and batch independence at
    PROOF_SIZES. Raises ExportError; `out` is written only on success.
    """
    original = read_model(source)
    architecture = recognise(original)
    measured: list[DetectorProof] = []

    def prove(candidate: Path) -> None:
        measured.append(
            DetectorProof(
                architecture.name,
                _prove_source(source, original, candidate),
                max(
                    parity.prove_batch_independence(
                        candidate, _photos(PROOF_BATCH, size), architecture.batch_tolerance
                    )
                    for size in PROOF_SIZES
                ),
            )
        )

    publish(make_dynamic(original, architecture), out, prove)
    return measured[0]


def recognise(model: onnx.ModelProto) -> DetectorFamily:
    """The architecture of a detector, recognised by its outputs. Raises ExportError for another."""
    sizes = [_dimensions(output)[-1:] for output in model.graph.output]
    channels = [_dimensions(output)[1:2] for output in model.graph.output]
    if channels == [[1], [2], [2], [10]]:
        return CENTERFACE
    if sizes == [[1]] * 3 + [[4]] * 3 + [[10]] * 3:
        return SCRFD
    raise ExportError(
        f"neither the four maps of CenterFace nor the nine lists of SCRFD: the outputs have "
        f"{[_dimensions(output) for output in model.graph.output]} values"
    )


def _dimensions(value: onnx.ValueInfoProto) -> list[int]:
    """The declared shape, 0 where a dimension is free."""
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def make_dynamic(source: onnx.ModelProto, architecture: DetectorFamily) -> onnx.ModelProto:
    """A copy with free batch, height and width, our names and the operator set we use."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    model.ir_version = IR_VERSION
    _drop_unused(model.graph)
    _free_shapes(model.graph, architecture)
    _keep_batch(model.graph)
    model = converted(model, OPSET)
    _rename(model.graph, [INPUT], model.graph.input)
    _rename(model.graph, [output.name for output in architecture.outputs], model.graph.output)
    _sign(model, architecture)
    return model


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove weights nothing reads, and weights from the inputs.

    PyTorch exported the training counter of every BatchNormalization, and old IR versions
    list weights as inputs that a caller could replace, which keeps a runtime from folding them.
    """
    nodes = live_nodes(list(graph.node), {output.name for output in graph.output})
    used = {name for node in nodes for name in node.input}
    weights = [weight for weight in graph.initializer if weight.name in used]
    names = {weight.name for weight in weights}
    inputs = [value for value in graph.input if value.name in used - names]
    if len(inputs) != 1:
        raise ExportError(f"a detector has one input, found {[value.name for value in inputs]}")
    for field, kept in ((graph.node, nodes), (graph.initializer, weights), (graph.input, inputs)):
        del field[:]
        field.extend(kept)


def _free_shapes(graph: onnx.GraphProto, architecture: DetectorFamily) -> None:
    del graph.value_info[:]  # fixed shapes of intermediate values
    shapes: list[Dimensions] = [["batch", 3, "height", "width"]]
    shapes += [output.shape for output in architecture.outputs]
    for value, shape in zip([*graph.input, *graph.output], shapes, strict=True):
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shape))


def _keep_batch(graph: onnx.GraphProto) -> None:
    """Keep the batch apart where a head is flattened.

    SCRFD's heads move channels last and the batch next to them, then flatten all but the values
    of one anchor: (n, c, h, w) -> (h, w, n, c) -> (h * w * n * c / values, values), which is only
    right for one image. Here it becomes (n, h, w, c) -> (n, h * w * c / values, values).
    """
    producers = {output: node for node in graph.node for output in node.output}
    weights = {weight.name: weight for weight in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Reshape"]:
        transpose = producers.get(node.input[0])
        shape = _constant(node.input[1], producers, weights)
        if transpose is None or shape is None or len(shape) != 2 or shape[0] != -1:
            continue
        permutation = next((a for a in transpose.attribute if a.name == "perm"), None)
        if permutation is None or list(permutation.ints) != [2, 3, 0, 1]:
            continue
        permutation.ints[:] = [0, 2, 3, 1]
        name = f"{node.output[0]}_shape"
        kept = np.array([0, -1, shape[1]], np.int64)
        graph.initializer.append(numpy_helper.from_array(kept, name))
        node.input[1] = name
    _drop_unused(graph)  # the shapes that were replaced


def _constant(
    name: str, producers: dict[str, onnx.NodeProto], weights: dict[str, onnx.TensorProto]
) -> NDArray[np.int64] | None:
    """The value called `name` if it is known without running the graph."""
    if name in weights:
        return np.asarray(numpy_helper.to_array(weights[name]), np.int64)
    node = producers.get(name)
    if node is None or node.op_type != "Constant":
        return None
    return np.asarray(numpy_helper.to_array(node.attribute[0].t), np.int64)


def _rename(
    graph: onnx.GraphProto, names: Sequence[str], values: Sequence[onnx.ValueInfoProto]
) -> None:
    mapping = {value.name: name for value, name in zip(values, names, strict=True)}
    taken = {name for node in graph.node for name in (*node.input, *node.output)} - set(mapping)
    if clashes := taken.intersection(names):
        raise ExportError(f"the source uses the names {sorted(clashes)} for something else")
    for node in graph.node:
        node.input[:] = [mapping.get(name, name) for name in node.input]
        node.output[:] = [mapping.get(name, name) for name in node.output]
    for value in values:
        value.name = mapping[value.name]


def _sign(model: onnx.ModelProto, architecture: DetectorFamily) -> None:
    """Say who wrote the file, and drop what ties its bytes to the machine of its making."""
    model.producer_name, model.producer_version, model.doc_string = PRODUCER, "", ""
    model.graph.name, model.graph.doc_string = architecture.name, ""
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        node.name = node.output[0]


def _prove_source(source: Path, original: onnx.ModelProto, candidate: Path) -> float:
    """Compare with the source at the batch and size it declares (free ones: 1 and 320)."""
    session = parity.open_session(source)
    weights = {weight.name for weight in original.graph.initializer}
    declared = next(value for value in original.graph.input if value.name not in weights)
    batch, _, height, width = _dimensions(declared)
    photos = _photos(batch or 1, (height or 320, width or 320))
    expected = parity.run(session, photos)
    actual = parity.run(parity.open_session(candidate), photos)
    return parity.prove_same_outputs(actual, expected, SOURCE_TOLERANCE)


def _photos(count: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """(count, 3, height, width) different images of whole numbers in 0…255, always the same."""
    generator = np.random.default_rng(seed=1)
    pixels = generator.integers(0, 256, (count, 3, *size))
    return pixels.astype(np.float32)
