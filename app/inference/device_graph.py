"""A network made ready for a device: one batch size, pixels in, and of a detector's heads only the
candidates out.

Pixels are a quarter of the bytes of float planes, and 512 candidates per level are a fiftieth of
all heads; both would otherwise cross the bus with each photo. The arithmetic is that of
`app.faces.images.to_blob` and of the heads themselves, so answers stay the same. With all shapes
fixed, ONNX Runtime computes shapes when it loads the network and leaves no node to the CPU.

`onnx` is a library of the extra `gpu`: import this module only where a device is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference

from app.types import Channels, PixelScale

PIXELS = "pixels"
# Candidates of a level that leave the device.
MOST_CANDIDATES = 512
# Numbers a candidate: score, place among the anchors, and those of box and landmarks.
CANDIDATE_NUMBERS = 16
CENTERFACE_CHANNELS = (1, 2, 2, 10)
SCRFD_CHANNELS = (1, 4, 10)


@dataclass(frozen=True, slots=True)
class DeviceGraph:
    """A network that takes exactly (batch, height, width, 3) uint8 BGR pixels. `levels` are the
    anchors of each level of a detector that answers candidates; empty where it answers heads."""

    content: bytes
    levels: tuple[int, ...] = ()


def read_network(path: Path) -> onnx.ModelProto:
    """The network of a file. Raises ValueError."""
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's own types
        raise ValueError(f"onnx cannot read it: {error}") from error


def device_graph(
    network: onnx.ModelProto, shape: tuple[int, int, int], given: PixelScale, *, candidates: bool
) -> DeviceGraph:
    """A network for batches of one `shape`: images, height, width. With `candidates` it answers
    those of a detector (CenterFace, or SCRFD with a list a head) where its heads are known.

    Raises ValueError for a network that cannot be made so.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    if _input(model).type.tensor_type.elem_type != TensorProto.UINT8:
        model = fold_pixels(model, given)
    _fix(model, (*shape, 3))
    levels = _add_candidates(model, shape[0]) if candidates else ()
    return DeviceGraph(model.SerializeToString(), levels)


def _input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input that is no weight. Raises ValueError."""
    weights = {weight.name for weight in model.graph.initializer}
    inputs: list[onnx.ValueInfoProto] = [
        value for value in model.graph.input if value.name not in weights
    ]
    if len(inputs) != 1:
        raise ValueError(f"a network with {len(inputs)} inputs instead of one")
    return inputs[0]


def fold_pixels(source: onnx.ModelProto, given: PixelScale) -> onnx.ModelProto:
    """A copy of a model with one float32 (batch, 3, height, width) input that takes pixels.

    Raises ValueError for another input.
    """
    model = onnx.ModelProto()
    model.CopyFrom(source)
    image = _input(model)
    if image.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ValueError("only a network with one float32 input can be made to take pixels")
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
    kept = [*nodes, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _add_constants(model, constants)
    pixels = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [batch, height, width, 3])
    image.CopyFrom(pixels)
    return model


def _a_channel(values: Channels) -> NDArray[np.float32]:
    """One number as it is, three as they stand against (n, 3, height, width)."""
    array = np.asarray(values, np.float32)
    return array if array.ndim == 0 else array.reshape(3, 1, 1)


def _add_constants(model: onnx.ModelProto, constants: dict[str, NDArray[Any]]) -> None:
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    model.graph.initializer.extend(weights)


def _fix(model: onnx.ModelProto, shape: Sequence[int]) -> None:
    """Give the input its one shape, and forget those of the outputs, which follow from it."""
    given = _input(model)
    for axis, length in zip(given.type.tensor_type.shape.dim, shape, strict=True):
        if axis.dim_value and axis.dim_value != length:
            raise ValueError(f"the network takes {axis.dim_value} where {length} are to go in")
        axis.dim_value = length
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")


def _add_candidates(model: onnx.ModelProto, batch: int) -> tuple[int, ...]:
    """Put a detector's candidates in the place of its heads; returns the anchors of each level,
    none where the heads are of no known kind, which are left as they are."""
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph.output
    shapes = {output.name: tuple(axis.dim_value for axis in output.type.tensor_type.shape.dim)
              for output in inferred}  # fmt: skip
    names = [output.name for output in model.graph.output]
    if tuple(shapes[name][1:2] for name in names) == tuple((c,) for c in CENTERFACE_CHANNELS):
        levels = [_as_lists(model, names, shapes)]
    else:
        levels = _scrfd_levels(names, shapes)
    if not levels:
        return ()
    del model.graph.output[:]
    for number, (heads, _) in enumerate(levels):
        _add_level(model, batch, f"candidates_{number}", heads, levels[number][1])
    return tuple(anchors for _, anchors in levels)


Heads = list[tuple[str, int]]  # names and numbers an anchor


def _as_lists(
    model: onnx.ModelProto, names: Sequence[str], shapes: dict[str, tuple[int, ...]]
) -> tuple[Heads, int]:
    """CenterFace's maps (n, channels, h, w) as lists (n, h * w, channels)."""
    heads: Heads = []
    for name in names:
        batch, channels, rows, columns = shapes[name]
        turned, listed = f"{name}_turned", f"{name}_listed"
        _add_constants(model, {f"{listed}_shape": np.array([batch, rows * columns, channels])})
        model.graph.node.extend([
            helper.make_node("Transpose", [name], [turned], perm=[0, 2, 3, 1]),
            helper.make_node("Reshape", [turned, f"{listed}_shape"], [listed]),
        ])  # fmt: skip
        heads.append((listed, channels))
    return heads, rows * columns


def _scrfd_levels(
    names: Sequence[str], shapes: dict[str, tuple[int, ...]]
) -> list[tuple[Heads, int]]:
    """SCRFD's lists (n, anchors, 1 | 4 | 10), most anchors first; empty for other heads."""
    lists = {c: sorted((n for n in names if len(shapes[n]) == 3 and shapes[n][2] == c),
                       key=lambda name: -shapes[name][1]) for c in SCRFD_CHANNELS}  # fmt: skip
    count = len(lists[1])
    if count not in {3, 5} or any(len(one) != count for one in lists.values()):
        return []
    if len(names) != count * len(SCRFD_CHANNELS) or any(0 in shapes[name] for name in names):
        return []
    return [
        ([(lists[c][level], c) for c in SCRFD_CHANNELS], shapes[lists[1][level]][1])
        for level in range(count)
    ]


def _add_level(model: onnx.ModelProto, batch: int, name: str, heads: Heads, anchors: int) -> None:
    """The candidates (batch, most, 16) of lists (batch, anchors, channels), the first of which has
    the scores: the best of them, highest first."""
    most = min(MOST_CANDIDATES, anchors)
    # Of every image's anchors in one list: operators that gather image by image are newer.
    first = np.arange(batch, dtype=np.int64)[:, np.newaxis] * anchors
    _add_constants(model, {
        f"{name}_flat": np.array([batch, anchors], np.int64),
        f"{name}_column": np.array([batch, most, 1], np.int64),
        f"{name}_most": np.array([most], np.int64),
        f"{name}_first": first,
    })  # fmt: skip
    nodes = [
        helper.make_node("Reshape", [heads[0][0], f"{name}_flat"], [f"{name}_scores"]),
        helper.make_node("TopK", [f"{name}_scores", f"{name}_most"],
                         [f"{name}_best", f"{name}_places"], axis=1),
        helper.make_node("Add", [f"{name}_places", f"{name}_first"], [f"{name}_rows"]),
        helper.make_node("Cast", [f"{name}_places"], [f"{name}_numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", [f"{name}_best", f"{name}_column"], [f"{name}_score"]),
        helper.make_node("Reshape", [f"{name}_numbers", f"{name}_column"], [f"{name}_place"]),
    ]  # fmt: skip
    columns = [f"{name}_score", f"{name}_place"]
    for head, channels in heads[1:]:
        listed, chosen = f"{head}_rows", f"{head}_chosen"
        _add_constants(model, {f"{listed}_shape": np.array([batch * anchors, channels])})
        nodes += [
            helper.make_node("Reshape", [head, f"{listed}_shape"], [listed]),
            helper.make_node("Gather", [listed, f"{name}_rows"], [chosen], axis=0),
        ]
        columns.append(chosen)
    nodes.append(helper.make_node("Concat", columns, [name], axis=2))
    model.graph.node.extend(nodes)
    shape = [batch, most, CANDIDATE_NUMBERS]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
