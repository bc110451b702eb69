"""Folds the way from pixels to a network's input into the network.

What goes in is then (batch, height, width, 3) uint8 BGR, a quarter of the bytes to be moved to a
GPU; colour order and normalisation become the graph's business.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.lab.errors import ExportError
from app.lab.export import parity
from app.lab.export.artefact import publish
from app.lab.export.faces import Normalisation
from app.lab.export.graph import PRODUCER, read_model
from app.types import Channels

PIXELS = "pixels"
# Dividing and multiplying by the inverse round differently, in the last bit of each value.
TOLERANCE = 1e-3
PROOF_BATCH = 3
PROOF_SIDE = 256


def export_pixels(source: Path, out: Path, given: Normalisation) -> float:
    """Write the network at `source` to `out` with uint8 pixels as its input, once it is proven to
    answer the same; returns the largest difference. Raises ExportError."""
    folded = fold_pixels(read_model(source), given)
    measured: list[float] = []

    def prove(candidate: Path) -> None:
        measured.append(_prove(source, candidate, given))

    publish(folded, out, prove)
    return measured[0]


def fold_pixels(source: onnx.ModelProto, given: Normalisation) -> onnx.ModelProto:
    """A copy of a model with one float32 (batch, 3, height, width) input that takes pixels."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ExportError("only a network with one float32 input can be made to take pixels")
    image = inputs[0]
    batch, _, height, width = (axis.dim_param or axis.dim_value
                               for axis in image.type.tensor_type.shape.dim)  # fmt: skip
    constants: dict[str, NDArray[Any]] = {
        "pixels_mean": _a_channel(given.mean),
        "pixels_scale": 1 / _a_channel(given.std),
        "pixels_order": np.array([2, 1, 0] if given.rgb else [0, 1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", [PIXELS, "pixels_order"], ["pixels_ordered"], axis=3),
        helper.make_node("Transpose", ["pixels_ordered"], ["pixels_planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["pixels_planes"], ["pixels_float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels_float", "pixels_mean"], ["pixels_centred"]),
        helper.make_node("Mul", ["pixels_centred", "pixels_scale"], [image.name]),
    ]
    kept = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    pixels = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [batch, height, width, 3])
    image.CopyFrom(pixels)
    model.producer_name = PRODUCER
    return model


def _a_channel(values: Channels) -> NDArray[np.float32]:
    """One number as it is, three as they stand against (n, 3, height, width)."""
    array = np.asarray(values, np.float32)
    return array if array.ndim == 0 else array.reshape(3, 1, 1)


def _prove(source: Path, candidate: Path, given: Normalisation) -> float:
    session = parity.open_session(source)
    batch, _, height, width = (axis if isinstance(axis, int) else None
                               for axis in session.get_inputs()[0].shape)  # fmt: skip
    size = (batch or PROOF_BATCH, height or PROOF_SIDE, width or PROOF_SIDE, 3)
    pixels = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
    blob = given.apply(np.ascontiguousarray(pixels[..., ::-1]))
    expected = parity.run(session, blob)
    actual = parity.run(parity.open_session(candidate), pixels)
    largest = max(1.0, *(float(np.abs(head).max()) for head in expected))
    return parity.prove_same_outputs(actual, expected, TOLERANCE * largest)
