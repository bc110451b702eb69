"""TFLite -> ONNX for convolutional face recognisers.

TFLite computes in NHWC with a batch fixed at conversion; the export computes in NCHW with a free
batch. Tensors of rank 4 therefore change their layout, all others keep theirs.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tflite
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from app.lab.export import parity
from app.lab.export.faces import Normalisation, load_faces
from app.lab.export.graph import Dimensions, GraphBuilder, without_prelu
from app.lab.export.parity import ExportError, FloatArray, publish
from scripts.tflite_export.network import (
    Operator,
    Tensor,
    TfliteGraph,
    UnsupportedOperator,
    match_prelu,
    read,
)

INPUT, OUTPUT = "input", "embedding"
_ELEMENTWISE = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul"}
_UNARY = {"RELU": "Relu", "ABS": "Abs"}


def export_tflite(
    source: Path, out: Path, faces: Path, normalisation: Normalisation
) -> parity.Agreement:
    """Convert a recogniser and write it to `out` once it answers like the TFLite interpreter.

    `faces` is a folder of aligned faces of the network's input size. Raises ExportError, of which
    ParityError means that the two disagree; `out` is written only on success.
    """
    network = read(source)
    model = without_prelu(convert(network))
    size = network.tensors[network.inputs[0]].shape[1]
    photos = normalisation.apply(load_faces(faces, size))
    measured: list[parity.Agreement] = []

    def prove(candidate: Path) -> None:
        expected = run_tflite(source, photos)
        measured.append(parity.prove_embeddings(candidate, photos, expected))

    publish(model, out, prove)
    return measured[0]


def run_tflite(path: Path, faces: FloatArray) -> FloatArray:
    """What the TFLite interpreter answers to (n, 3, size, size) faces: (n, d).

    The batch stays the one the file was made with: faces go in by that number, and the last
    group is filled up with its last face.
    """
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    step = int(entry["shape"][0])
    images, answers = faces.transpose(0, 2, 3, 1), []
    for start in range(0, len(images), step):
        group = images[np.minimum(np.arange(start, start + step), len(images) - 1)]
        interpreter.set_tensor(entry["index"], np.ascontiguousarray(group))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(exit_["index"]))
    return np.asarray(np.concatenate(answers)[: len(faces)], np.float32)


def convert(network: TfliteGraph) -> onnx.ModelProto:
    """The network as ONNX: `input` (batch, 3, height, width) -> `embedding` (batch, dimension).

    Raises UnsupportedOperator for what has no translation, ExportError for a network that does
    not turn one image into one vector.
    """
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ExportError("a recogniser has one input and one output")
    image, embedding = (network.tensors[i] for i in (*network.inputs, *network.outputs))
    if len(image.shape) != 4 or len(embedding.shape) != 2:
        raise ExportError(
            f"expected an image in and one vector a face out, found {image.shape} and "
            f"{embedding.shape}"
        )
    return _Translation(network).run()


class _Translation:
    """One pass over the operators; every tensor met is remembered by its ONNX name."""

    def __init__(self, network: TfliteGraph) -> None:
        self._network = network
        self._graph = GraphBuilder("recogniser")
        self._values: dict[int, str] = {}
        self._translators: dict[str, Callable[[Operator], str]] = {
            "CONV_2D": self._convolution,
            "DEPTHWISE_CONV_2D": self._depthwise,
            "RESHAPE": self._reshape,
            **dict.fromkeys(_ELEMENTWISE, self._elementwise),
            **dict.fromkeys(_UNARY, self._unary),
        }

    def run(self) -> onnx.ModelProto:
        source, target = self._network.inputs[0], self._network.outputs[0]
        _, height, width, channels = self._network.tensors[source].shape
        shape: Dimensions = ["batch", channels, height, width]
        self._values[source] = self._graph.input(INPUT, shape)
        for step in self._network.operators:
            self._values[step.outputs[0]] = self._translate(step)
        dimension = self._network.tensors[target].shape[1]
        self._graph.output(OUTPUT, self._values[target], ["batch", dimension])
        return self._graph.build()

    def _translate(self, step: Operator) -> str:
        found = match_prelu(self._network, step)
        if found is not None:
            slope = self._graph.weight(f"{self._name(step)}_slope", _channel_first(found.slope))
            return self._graph.node("PRelu", [self._values[found.source], slope], self._name(step))
        if step.name not in self._translators:
            raise UnsupportedOperator(step.name)
        return self._translators[step.name](step)

    def _name(self, step: Operator) -> str:
        """The ONNX name of what the step computes; the index keeps it unique."""
        return f"t{step.outputs[0]}"

    def _tensor(self, index: int) -> Tensor:
        return self._network.tensors[index]

    def _constant(self, step: Operator, position: int) -> NDArray[Any]:
        data = self._tensor(step.inputs[position]).data
        if data is None:
            raise UnsupportedOperator(step.name, f"its input {position} must be a constant")
        return data

    def _unary(self, step: Operator) -> str:
        return self._graph.node(_UNARY[step.name], [self._values[step.inputs[0]]], self._name(step))

    def _elementwise(self, step: Operator) -> str:
        rank = len(self._tensor(step.outputs[0]).shape)
        operands = [self._operand(step, index, rank) for index in step.inputs]
        return self._activated(step, _ELEMENTWISE[step.name], operands)

    def _operand(self, step: Operator, index: int, rank: int) -> str:
        tensor = self._tensor(index)
        if tensor.data is None:
            if len(tensor.shape) != rank:
                raise UnsupportedOperator(step.name, "broadcasts a computed tensor of lower rank")
            return self._values[index]
        data = _channel_first(tensor.data) if rank == 4 else tensor.data
        return self._graph.weight(f"c{index}", data)

    def _convolution(self, step: Operator) -> str:
        kernel = self._constant(step, 1)  # (out, height, width, in / groups)
        channels = self._tensor(step.inputs[0]).shape[3]
        groups = channels // kernel.shape[3]
        return self._convolve(step, kernel.transpose(0, 3, 1, 2), groups)

    def _depthwise(self, step: Operator) -> str:
        kernel = self._constant(step, 1)  # (1, height, width, in * multiplier)
        channels = self._tensor(step.inputs[0]).shape[3]
        return self._convolve(step, kernel.transpose(3, 0, 1, 2), channels)

    def _convolve(self, step: Operator, kernel: NDArray[Any], groups: int) -> str:
        """`kernel` is in ONNX's order: (out, in / groups, height, width)."""
        options = step.options
        strides = (options.StrideH(), options.StrideW())
        dilations = (options.DilationHFactor(), options.DilationWFactor())
        inputs = [
            self._values[step.inputs[0]],
            self._graph.weight(f"c{step.inputs[1]}", kernel),
        ]
        if len(step.inputs) > 2 and step.inputs[2] >= 0:
            bias = self._constant(step, 2)
            inputs.append(self._graph.weight(f"c{step.inputs[2]}", bias))
        size = self._tensor(step.inputs[0]).shape[1:3]
        attributes = {
            "kernel_shape": list(kernel.shape[2:]),
            "strides": list(strides),
            "dilations": list(dilations),
            "group": groups,
            "pads": _pads(options.Padding(), size, kernel.shape[2:], strides, dilations),
        }
        return self._activated(step, "Conv", inputs, **attributes)

    def _reshape(self, step: Operator) -> str:
        before, after = (self._tensor(i).shape for i in (step.inputs[0], step.outputs[0]))
        if before[0] != after[0]:
            raise UnsupportedOperator(step.name, f"changes the batch: {before} to {after}")
        if len(after) == 4:
            raise UnsupportedOperator(step.name, f"makes an image: {before} to {after}")
        value, name = self._values[step.inputs[0]], self._name(step)
        # Values are laid out by channel last in the source; with one pixel there is no difference.
        if len(before) == 4 and before[1:3] != (1, 1):
            value = self._graph.node("Transpose", [value], f"{name}_nhwc", perm=[0, 2, 3, 1])
        # 0 keeps the batch as it comes, whatever number was fixed in the source.
        shape = self._graph.weight(f"{name}_shape", np.array([0, *after[1:]], np.int64))
        return self._graph.node("Reshape", [value, shape], name)

    def _activated(self, step: Operator, kind: str, inputs: list[str], **attributes: Any) -> str:
        """A node followed by the activation TFLite fused into its operator."""
        activation = step.options.FusedActivationFunction()
        name = self._name(step)
        if activation == tflite.ActivationFunctionType.NONE:
            return self._graph.node(kind, inputs, name, **attributes)
        if activation != tflite.ActivationFunctionType.RELU:
            raise UnsupportedOperator(step.name, f"its fused activation {activation} is unknown")
        linear = self._graph.node(kind, inputs, f"{name}_linear", **attributes)
        return self._graph.node("Relu", [linear], name)


def _channel_first(constant: NDArray[Any]) -> NDArray[Any]:
    """A constant that broadcasts against NHWC, made to broadcast against NCHW."""
    if constant.ndim == 0:
        return constant
    # Broadcasting aligns the last axes: fill up to (1, height, width, channels) first.
    full = constant.reshape((1,) * (4 - constant.ndim) + constant.shape)
    if full.shape[0] != 1:
        raise ExportError("a constant holds one value an image of a fixed batch")
    return np.asarray(full[0].transpose(2, 0, 1))


def _pads(
    padding: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> list[int]:
    """Explicit ONNX pads (top, left, bottom, right) of a TFLite convolution.

    SAME yields ceil(size / stride) outputs and needs `total` pixels for that. An odd one goes to
    the bottom or right, so a stride of 2 over an even size pads one side only, which ONNX's
    symmetric pads of PyTorch habit would shift by a pixel (TensorFlow documentation, `tf.nn`,
    "Notes on padding").
    """
    if padding == tflite.Padding.VALID:
        return [0, 0, 0, 0]
    before, after = [], []
    for length, taps, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        reach = (taps - 1) * dilation + 1
        total = max((math.ceil(length / stride) - 1) * stride + reach - length, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before + after
