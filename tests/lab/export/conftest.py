"""Tiny TFLite networks and stand-in faces, made by the tests themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import flatbuffers  # type: ignore[import-untyped]
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from app.lab.export.faces import MINIMUM_FACES

Shape = tuple[int, ...]


class TinyNetwork:
    """Writes a float32 TFLite file operator by operator, with random weights."""

    def __init__(self, input_shape: Shape) -> None:
        self._random = np.random.default_rng(seed=7)
        self._tensors: list[Any] = []
        self._shapes: list[Shape] = []
        self._buffers: list[Any] = [schema.BufferT()]  # buffer 0 means: none
        self._codes: list[Any] = []
        self._operators: list[Any] = []
        self.input = self._tensor(input_shape)

    def _tensor(self, shape: Shape, buffer: int = 0, kind: int = schema.TensorType.FLOAT32) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape = f"tensor{len(self._tensors)}".encode(), list(shape)
        tensor.buffer, tensor.type = buffer, kind
        self._tensors.append(tensor)
        self._shapes.append(shape)
        return len(self._tensors) - 1

    def constant(self, array: NDArray[Any]) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        self._buffers.append(buffer)
        integers = array.dtype == np.int32
        kind = schema.TensorType.INT32 if integers else schema.TensorType.FLOAT32
        return self._tensor(array.shape, len(self._buffers) - 1, kind)

    def weights(self, *shape: int) -> int:
        return self.constant(self._random.normal(0, 0.5, shape).astype(np.float32))

    def operator(self, name: str, inputs: list[int], shape: Shape, options: Any = None) -> int:
        """Append one; `options` is one of the schema's ...OptionsT. Returns its output."""
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        self._codes.append(code)
        operator.opcodeIndex, operator.inputs = len(self._codes) - 1, inputs
        if options is not None:
            operator.builtinOptions = options
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.outputs = [self._tensor(shape)]
        self._operators.append(operator)
        return int(operator.outputs[0])

    def convolution(
        self,
        x: int,
        channels: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        same: bool = True,
    ) -> int:
        n, height, width, depth = self._shapes[x]
        options = self._spatial(schema.Conv2DOptionsT(), stride, dilation, same)
        reach = (kernel - 1) * dilation + 1
        rows, columns = (_outputs(size, reach, stride, same) for size in (height, width))
        inputs = [x, self.weights(channels, kernel, kernel, depth), self.weights(channels)]
        return self.operator("CONV_2D", inputs, (n, rows, columns, channels), options)

    def depthwise(
        self,
        x: int,
        *,
        multiplier: int = 1,
        kernel: int = 3,
        stride: int = 1,
        same: bool = True,
        relu: bool = False,
    ) -> int:
        n, height, width, depth = self._shapes[x]
        options = self._spatial(schema.DepthwiseConv2DOptionsT(), stride, 1, same)
        options.depthMultiplier = multiplier
        options.fusedActivationFunction = int(relu)
        rows, columns = (_outputs(size, kernel, stride, same) for size in (height, width))
        channels = depth * multiplier
        inputs = [x, self.weights(1, kernel, kernel, channels), self.weights(channels)]
        return self.operator("DEPTHWISE_CONV_2D", inputs, (n, rows, columns, channels), options)

    @staticmethod
    def _spatial(options: Any, stride: int, dilation: int, same: bool) -> Any:
        options.padding = schema.Padding.SAME if same else schema.Padding.VALID
        options.strideH = options.strideW = stride
        options.dilationHFactor = options.dilationWFactor = dilation
        return options

    def add(self, a: int, b: int) -> int:
        return self.operator("ADD", [a, b], self._shapes[a], schema.AddOptionsT())

    def subtract(self, a: int, b: int) -> int:
        return self.operator("SUB", [a, b], self._shapes[a], schema.SubOptionsT())

    def multiply(self, x: int, factor: int) -> int:
        return self.operator("MUL", [factor, x], self._shapes[x], schema.MulOptionsT())

    def prelu(self, x: int, half_apart: bool = False) -> int:
        """PReLU as converters without such an operator write it."""
        shape = self._shapes[x]
        positive = self.operator("RELU", [x], shape)
        absolute = self.operator("ABS", [x], shape, schema.AbsOptionsT())
        negative = self.subtract(x, absolute)
        negative = self.multiply(negative, self.weights(shape[-1]))
        if half_apart:
            negative = self.multiply(negative, self.constant(np.array([0.5], np.float32)))
        return self.add(positive, negative)

    def flatten(self, x: int) -> int:
        shape = self._shapes[x]
        flat = (shape[0], int(np.prod(shape[1:])))
        target = self.constant(np.array(flat, np.int32))
        return self.operator("RESHAPE", [x, target], flat, schema.ReshapeOptionsT())

    def write(self, path: Path, output: int) -> Path:
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs, graph.outputs = [self.input], [output]
        model.version, model.subgraphs = 3, [graph]
        model.operatorCodes, model.buffers = self._codes, self._buffers
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        path.write_bytes(builder.Output())
        return path


def _outputs(size: int, reach: int, stride: int, same: bool) -> int:
    return -(-size // stride) if same else -(-(size - reach + 1) // stride)


@pytest.fixture
def tiny_network() -> type[TinyNetwork]:
    return TinyNetwork


@pytest.fixture
def small_recogniser(tmp_path: Path) -> Path:
    """Every operator of the real network once: 16 x 16 pixels in, 192 numbers out, batch 2."""
    net = TinyNetwork((2, 16, 16, 3))
    x = net.prelu(net.convolution(net.input, 8, stride=2))
    x = net.prelu(net.depthwise(x, stride=2))
    x = net.add(x, net.convolution(x, 8, kernel=1))
    x = net.convolution(x, 12)
    return net.write(tmp_path / "small.tflite", net.flatten(x))


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """A folder of small colour images with structure in them."""

    def make(count: int = MINIMUM_FACES, size: int = 16) -> Path:
        folder = tmp_path / f"images-{count}-{size}"
        folder.mkdir()
        random = np.random.default_rng(seed=3)
        for number in range(count):
            coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(folder / f"{number:03d}.png"), image)
        return folder

    return make
