"""Lower precision: half precision for GPUs, 8-bit integers for CPUs."""

import tempfile
from contextlib import redirect_stdout
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from app.lab.export import parity
from app.lab.export.graph import OPSET, converted, live_nodes
from app.lab.export.parity import FloatArray

LARGEST_HALF = 65504.0
SAMPLE = 8
CALIBRATION_FACES = 100
PERCENTILE = 99.99


class Precision(StrEnum):
    FP32 = "fp32"
    FP16 = "fp16"
    # Activations are measured for each image: no calibration, little speed.
    INT8_DYNAMIC = "int8-dynamic"
    # Their ranges are counted once on a folder of faces.
    INT8 = "int8"


# The lowest cosine to the source on any face; an integer network is compared by its error rates.
MINIMUM_COSINE = {
    Precision.FP32: parity.MINIMUM_COSINE,
    Precision.FP16: 0.999,
    Precision.INT8_DYNAMIC: 0.95,
    Precision.INT8: 0.95,
}


def to_half(model: onnx.ModelProto, faces: FloatArray) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The model in float16 with float32 at its ends, and the nodes that stay float32.

    Those are the nodes whose values exceed float16 on (n, 3, size, size) `faces`, and then, while
    the cosine to the source is below MINIMUM_COSINE, the ones that add the most error.
    """
    faces = faces[:SAMPLE]
    exact = _values(model, faces)
    output = model.graph.output[0].name
    kept = {node.name for node in _named(model).graph.node if _overflows(node, exact)}
    count = 1
    while True:
        half = convert_float_to_float16(
            _named(model), keep_io_types=True, node_block_list=sorted(kept)
        )
        OnnxModel(half).topological_sort()  # the casts were appended
        _join_kept(half.graph)
        values = _values(half, faces)
        nodes = [node for node in _named(model).graph.node if node.name not in kept]
        finite = bool(np.isfinite(values[output]).all())
        close = finite and (
            parity.cosines(values[output], exact[output]).min() >= MINIMUM_COSINE[Precision.FP16]
        )
        if close or not nodes:
            return half, tuple(sorted(kept))
        worst = sorted(nodes, key=lambda node: _added_error(node, values, exact))[-count:]
        kept.update(node.name for node in worst)
        count *= 2


def _join_kept(graph: onnx.GraphProto) -> None:
    """Let float32 flow from one kept node to the next: the converter rounds it to float16 and back,
    and what does not fit becomes infinite on the way."""
    producers = {output: node for node in graph.node for output in node.output}
    origins: dict[str, str] = {}
    for node in graph.node:
        inner = producers.get(node.input[0]) if node.op_type == "Cast" else None
        rounded = inner is not None and _casts_to(inner, TensorProto.FLOAT16)
        if inner is not None and rounded and _casts_to(node, TensorProto.FLOAT):
            origins[node.output[0]] = inner.input[0]
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = origins.get(name, name)
    nodes = live_nodes(list(graph.node), {output.name for output in graph.output})
    del graph.node[:]
    graph.node.extend(nodes)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and any(
        attribute.name == "to" and attribute.i == kind for attribute in node.attribute
    )


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name, always the same."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return copy


def _values(model: onnx.ModelProto, faces: FloatArray) -> dict[str, FloatArray]:
    """Every float value inside a network, by name."""
    inferred = onnx.shape_inference.infer_shapes(model)
    produced = {name for node in inferred.graph.node for name in node.output}
    produced -= {value.name for value in inferred.graph.output}
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    for value in inferred.graph.value_info:
        if value.name in produced and value.type.tensor_type.elem_type in floats:
            inferred.graph.output.append(onnx.ValueInfoProto(name=value.name, type=value.type))
    session = parity.open_session_of(inferred)
    names = [output.name for output in session.get_outputs()]
    with np.errstate(over="ignore"):
        return dict(zip(names, parity.run(session, faces), strict=True))


def _overflows(node: onnx.NodeProto, values: dict[str, FloatArray]) -> bool:
    return any(
        not np.abs(values[name]).max(initial=0) <= LARGEST_HALF
        for name in (*node.input, *node.output)
        if name in values
    )


def _added_error(
    node: onnx.NodeProto, values: dict[str, FloatArray], exact: dict[str, FloatArray]
) -> float:
    """How much less exact a node's outputs are than what it was given."""
    before = [_error(name, values, exact) for name in node.input]
    after = [_error(name, values, exact) for name in node.output]
    return max(after, default=0.0) - max(before, default=0.0)


def _error(name: str, values: dict[str, FloatArray], exact: dict[str, FloatArray]) -> float:
    if name not in values or name not in exact:
        return 0.0
    difference = np.linalg.norm((values[name] - exact[name]).astype(np.float64))
    error = difference / max(float(np.linalg.norm(exact[name].astype(np.float64))), 1e-12)
    return float(error) if np.isfinite(error) else float("inf")


class _Faces(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, faces: FloatArray) -> None:
        self._rows = iter([{name: face[np.newaxis]} for face in faces])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._rows, None)


def to_integers(
    model: onnx.ModelProto, precision: Precision, calibration: FloatArray
) -> onnx.ModelProto:
    """The model with 8-bit weights and activations; `calibration` (n, 3, size, size) is what the
    ranges of the static kind are counted on."""
    with tempfile.TemporaryDirectory() as folder:
        source, ready, out = (Path(folder) / f"{name}.onnx" for name in ("source", "ready", "out"))
        onnx.save(with_scales_a_channel(model), source)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        exact = _sensitive(onnx.load(ready).graph)
        if precision is Precision.INT8_DYNAMIC:
            # ConvInteger of ONNX Runtime's CPU provider knows unsigned weights alone.
            quantize_dynamic(
                ready,
                out,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=exact,
                weight_type=QuantType.QUInt8,
            )
        else:
            with redirect_stdout(StringIO()):  # it prints its progress
                quantize_static(
                    ready,
                    out,
                    _Faces(model.graph.input[0].name, calibration[:CALIBRATION_FACES]),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=["Conv"],
                    nodes_to_exclude=exact,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.Percentile,
                    extra_options={"CalibPercentile": PERCENTILE},
                )
        return onnx.load(out)


def with_scales_a_channel(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in operators that know a scale for each channel (13 and newer). Raises
    ExportError."""
    if model.opset_import[0].version >= OPSET:
        return model
    return converted(model, OPSET)


def _sensitive(graph: onnx.GraphProto) -> list[str]:
    """The convolutions that stay float32: the first, which sees the pixels, and the depthwise ones,
    whose channels have ranges of their own that one scale for all does not fit (minimum cosine on
    LFW 0.88 with them, 0.98 without, and slower with them)."""
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    groups = {
        node.name: attribute.i
        for node in convolutions
        for attribute in node.attribute
        if attribute.name == "group"
    }
    return [
        node.name
        for number, node in enumerate(convolutions)
        if number == 0 or groups.get(node.name, 1) > 1
    ]
