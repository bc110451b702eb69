"""A TFLite file as frozen values, and PReLU recognised where a converter took it apart.

The format is TensorFlow's `schema.fbs`, version 3; the `tflite` package holds its generated
readers. Only what a float32 vision network needs is taken over.

Converters without a PReLU operator write max(x, 0) + slope * min(x, 0), with
min(x, 0) = (x - |x|) / 2 and the half multiplied in before or kept as a factor of its own.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tflite
from numpy.typing import NDArray

from app.lab.export.parity import ExportError


class UnsupportedOperator(ExportError):
    """The source uses an operator, or a variant of one, that has no translation here."""

    def __init__(self, name: str, reason: str = "has no translation to ONNX here") -> None:
        super().__init__(f"operator {name}: {reason}")
        self.name = name


_DTYPES: dict[int, type[np.generic]] = {
    tflite.TensorType.FLOAT32: np.float32,
    tflite.TensorType.INT32: np.int32,
}


def _names(enumeration: Any) -> dict[int, str]:
    """The members of one of the schema's enumerations, by value."""
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


_OPERATORS = _names(tflite.BuiltinOperator)
_TYPES = _names(tflite.TensorType)
_NONE = tflite.ActivationFunctionType.NONE
# Operators that carry options are read through the class the schema names after them.
_OPTIONS: dict[str, Any] = {
    "ADD": tflite.AddOptions,
    "SUB": tflite.SubOptions,
    "MUL": tflite.MulOptions,
    "CONV_2D": tflite.Conv2DOptions,
    "DEPTHWISE_CONV_2D": tflite.DepthwiseConv2DOptions,
}


@dataclass(frozen=True)
class Tensor:
    """One value of the graph. `shape` is static, in TFLite's order (batch, height, width,
    channels); `data` is the constant it holds, None for one that is computed."""

    name: str
    shape: tuple[int, ...]
    data: NDArray[Any] | None


@dataclass(frozen=True)
class Operator:
    """One step: `inputs` and `outputs` index the network's tensors, -1 is an input left out."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclass(frozen=True)
class TfliteGraph:
    """The first subgraph of a file, its operators in the order they run."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @cached_property
    def producers(self) -> dict[int, Operator]:
        """The operator that computes a tensor."""
        return {tensor: step for step in self.operators for tensor in step.outputs}


def read(path: Path) -> TfliteGraph:
    """Parse a .tflite file. Raises ExportError when it is none, or is not float32."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) < 8 or not tflite.Model.ModelBufferHasIdentifier(content, 0):
        raise ExportError(f"{path} is not a TFLite file: it lacks the identifier TFL3")
    model = tflite.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    return TfliteGraph(
        tensors=tuple(_tensor(model, graph.Tensors(i)) for i in range(graph.TensorsLength())),
        operators=tuple(
            _operator(model, graph.Operators(i)) for i in range(graph.OperatorsLength())
        ),
        inputs=_indices(graph.InputsAsNumpy()),
        outputs=_indices(graph.OutputsAsNumpy()),
    )


def _indices(values: Any) -> tuple[int, ...]:
    # The generated readers answer 0, not an empty array, for a vector that is absent.
    return tuple(int(value) for value in np.atleast_1d(values)) if np.size(values) else ()


def _tensor(model: Any, tensor: Any) -> Tensor:
    name = tensor.Name().decode()
    shape = _indices(tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
    dtype = _DTYPES.get(tensor.Type())
    if dtype is None:
        found = _TYPES.get(tensor.Type(), str(tensor.Type()))
        raise ExportError(f"tensor '{name}' is {found}; only float32 networks can be exported")
    buffer = model.Buffers(tensor.Buffer())
    if not buffer.DataLength():
        return Tensor(name, shape, None)
    data = np.frombuffer(buffer.DataAsNumpy().tobytes(), np.dtype(dtype).newbyteorder("<"))
    if data.size != math.prod(shape):
        raise ExportError(f"tensor '{name}' has {data.size} values for a shape of {shape}")
    return Tensor(name, shape, data.astype(dtype).reshape(shape))


def _operator(model: Any, operator: Any) -> Operator:
    code = model.OperatorCodes(operator.OpcodeIndex())
    # Codes above 127 did not fit the field's first, 8-bit version, which then says "see the other".
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = _OPERATORS.get(number, f"number {number}")
    if number == tflite.BuiltinOperator.CUSTOM:
        name = f"CUSTOM {code.CustomCode().decode()}"
    return Operator(
        name=name,
        inputs=_indices(operator.InputsAsNumpy()),
        outputs=_indices(operator.OutputsAsNumpy()),
        options=_options(name, operator),
    )


def _options(name: str, operator: Any) -> Any:
    """The operator's options, None for those that have none we read."""
    if name not in _OPTIONS:
        return None
    table = operator.BuiltinOptions()
    if table is None:
        raise UnsupportedOperator(name, "its options are missing")
    options = _OPTIONS[name]()
    options.Init(table.Bytes, table.Pos)
    return options


@dataclass(frozen=True)
class PRelu:
    """PReLU of tensor `source`; `slope` broadcasts against it, channels last."""

    source: int
    slope: NDArray[Any]


def match_prelu(network: TfliteGraph, step: Operator) -> PRelu | None:
    """The PReLU that ends in `step`, or None where it is anything else."""
    if step.name != "ADD" or step.options.FusedActivationFunction() != _NONE:
        return None
    for positive, negative in (step.inputs, step.inputs[::-1]):
        source = _operand_of(network, positive, "RELU")
        factor, inner = _scaled(network, negative)
        if source is not None and source == _twice_negative_part(network, inner):
            # x - |x| is twice min(x, 0); doubling a float is exact.
            return PRelu(source, np.asarray(factor * 2, np.float32))
    return None


def _operand_of(network: TfliteGraph, tensor: int, name: str) -> int | None:
    """The input of the operator `name` that computes `tensor`, if that one does."""
    step = network.producers.get(tensor)
    return step.inputs[0] if step is not None and step.name == name else None


def _scaled(network: TfliteGraph, tensor: int) -> tuple[NDArray[Any], int]:
    """`tensor` as a constant factor times another tensor, with all constant factors gathered."""
    factor: NDArray[Any] = np.ones((), np.float32)
    while (step := network.producers.get(tensor)) is not None and step.name == "MUL":
        constants = [i for i in step.inputs if network.tensors[i].data is not None]
        if len(constants) != 1 or step.options.FusedActivationFunction() != _NONE:
            break
        factor = factor * network.tensors[constants[0]].data
        tensor = next(i for i in step.inputs if i != constants[0])
    return factor, tensor


def _twice_negative_part(network: TfliteGraph, tensor: int) -> int | None:
    """The x of `tensor` = x - |x|."""
    step = network.producers.get(tensor)
    if step is None or step.name != "SUB" or step.options.FusedActivationFunction() != _NONE:
        return None
    whole, absolute = step.inputs
    return whole if _operand_of(network, absolute, "ABS") == whole else None
