"""Several recognisers -> one network whose embedding is theirs, joined.

The members see the same aligned face. With their embeddings e1, e2, … and weights w1, w2, … of the
sum 1, the embedding is

    [√w1 e1 ; √w2 |e1| e2/|e2| ; …]

so the cosine of two embeddings is the mean of the members' cosines by their weights, and their
length is that of the first member, whose measure of quality it stays.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from app.lab.export import parity
from app.lab.export.faces import Normalisation
from app.lab.export.graph import IR_VERSION, OPSET, PRODUCER, converted, without_prelu
from app.lab.export.parity import ExportError, publish
from app.types import Channels

INPUT, OUTPUT = "input", "embedding"
# Lengths below this are no directions: their part of the embedding is then zeros.
SHORTEST = np.float32(1e-12)
PROOF_BATCH = 3
# Beyond it a part of the embedding would be lost in the rounding of the others.
MOST_WEIGHT = 1e3
# Of the largest number of an embedding: a batch is summed in another order, and so are PReLU's.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Member:
    """A recogniser of a fusion: its float32 network, how it wants its pixels, and its weight among
    the members'. `identity` is the SHA-256 of the file that the network is or was made of, `name`
    is for messages."""

    name: str
    model: onnx.ModelProto
    normalisation: Normalisation
    weight: float
    identity: str

    @property
    def size(self) -> int:
        """Side of the faces it takes. Raises ExportError where it does not take (n, 3, side, side)
        float32."""
        taken = _input(self).type.tensor_type
        shape = [axis.dim_value for axis in taken.shape.dim]
        if taken.elem_type == TensorProto.UINT8:
            raise ExportError(
                f"{self.name} takes uint8 pixels, which have no normalisation to join by: give the "
                "network of float32 input that it was made of"
            )
        if taken.elem_type != TensorProto.FLOAT or len(shape) != 4 or shape[1] != 3 or not (
            shape[2] == shape[3] > 0
        ):  # fmt: skip
            raise ExportError(f"{self.name} does not take float32 faces (batch, 3, side, side)")
        return int(shape[2])


def identity_of(members: Sequence[Member]) -> str:
    """A SHA-256 of all that decides what the fusion answers: the same for the same sources on every
    machine, however the networks are written down."""
    lines = ["fusion of recognisers"]
    for member, weight in zip(members, _shares(members), strict=True):
        given = member.normalisation
        numbers = [float(one) for one in (*_channels(given.mean), *_channels(given.std), weight)]
        lines.append(f"{member.identity} {'rgb' if given.rgb else 'bgr'} {numbers}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fuse(members: Sequence[Member], out: Path, *, keep_prelu: bool = False) -> None:
    """Write the fusion to `out`: (batch, 3, side, side) as the first member takes it -> (batch, all
    numbers). Each face of a batch must be answered as the members alone say. Raises ExportError.
    """
    _check(members)
    side = members[0].size
    pixels = np.random.default_rng(seed=5).integers(0, 256, (PROOF_BATCH, side, side, 3), np.uint8)
    expected = _expected(members, pixels)
    blob = members[0].normalisation.apply(pixels)
    model = _joined(members, expected.shape[1])
    model = model if keep_prelu else without_prelu(model)

    def prove(candidate: Path) -> None:
        tolerance = TOLERANCE * float(np.abs(expected).max())
        try:
            answers = parity.run(parity.open_session(candidate), blob)
        except ExportError as error:
            raise ExportError(f"the fusion does not run on a batch of faces: {error}") from error
        parity.prove_same_outputs(answers, [expected], tolerance)

    publish(model, out, prove)


def _check(members: Sequence[Member]) -> None:
    if len(members) < 2:
        raise ExportError("a fusion has two recognisers or more")
    for member in members:
        if not 1 / MOST_WEIGHT <= member.weight <= MOST_WEIGHT:
            raise ExportError(
                f"the weight of {member.name} is {member.weight:g}: a weight is from "
                f"{1 / MOST_WEIGHT:g} to {MOST_WEIGHT:g}"
            )
        if member.size != members[0].size:
            raise ExportError(
                f"{member.name} takes faces of {member.size} x {member.size} pixels and "
                f"{members[0].name} of {members[0].size} x {members[0].size}: recognisers of one "
                "fusion take faces of one size"
            )


def _shares(members: Sequence[Member]) -> list[float]:
    total = math.fsum(member.weight for member in members)
    return [member.weight / total for member in members]


def _expected(members: Sequence[Member], pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the fusion has to answer, by the members' own networks, one face at a time."""
    answers = []
    for member in members:
        try:
            session = parity.open_session_of(member.model)
            blob = member.normalisation.apply(pixels)
            rows = [parity.run(session, face[np.newaxis])[0] for face in blob]
        except ExportError as error:
            raise ExportError(f"{member.name} answers no face: {error}") from error
        if any(row.ndim != 2 for row in rows):
            raise ExportError(f"{member.name} does not answer one vector a face")
        answers.append(np.concatenate(rows).astype(np.float64))
    lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in answers]
    parts = [
        math.sqrt(share) * one * (lengths[0] / length)
        for share, one, length in zip(_shares(members), answers, lengths, strict=True)
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


# --- the graph ---------------------------------------------------------------------------------


def _joined(members: Sequence[Member], dimension: int) -> onnx.ModelProto:
    opset = max(OPSET, *(_opset(member.model) for member in members))
    models = [_prepared(member, place, opset) for place, member in enumerate(members)]
    nodes, weights, parts = [], [], []
    length = ""
    for place, (member, model, share) in enumerate(
        zip(members, models, _shares(members), strict=True)
    ):
        made = _Part(f"part{place}")
        made.pixels(member.normalisation, members[0].normalisation, model.graph.input[0].name)
        nodes += [*made.nodes, *model.graph.node]
        made.nodes.clear()
        length = made.weighted(model.graph.output[0].name, share, length)
        nodes += made.nodes
        weights += [*model.graph.initializer, *made.weights]
        parts.append(made.result)
    nodes.append(helper.make_node("Concat", parts, [OUTPUT], name=OUTPUT, axis=1))
    side = members[0].size
    graph = helper.make_graph(
        nodes,
        "fusion",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", dimension])],
        weights,
    )
    domains = {one.domain: one for model in models for one in model.opset_import if one.domain}
    return helper.make_model(
        graph,
        producer_name=PRODUCER,
        ir_version=max(IR_VERSION, *(model.ir_version for model in models)),
        opset_imports=[helper.make_opsetid("", opset), *domains.values()],
    )


def _input(member: Member) -> onnx.ValueInfoProto:
    """The one input of a network; old files list their weights among the inputs."""
    weights = {one.name for one in member.model.graph.initializer}
    inputs: list[onnx.ValueInfoProto] = [
        one for one in member.model.graph.input if one.name not in weights
    ]
    if len(inputs) != 1 or len(member.model.graph.output) != 1:
        raise ExportError(
            f"{member.name} has {len(inputs)} inputs and {len(member.model.graph.output)} outputs; "
            "a recogniser has one of each"
        )
    return inputs[0]


def _opset(model: onnx.ModelProto) -> int:
    return max((one.version for one in model.opset_import if one.domain == ""), default=1)


def _prepared(member: Member, place: int, opset: int) -> onnx.ModelProto:
    """A copy of the member's network of that operator set, its names its own, whose single input is
    the first."""
    model = onnx.ModelProto()
    model.CopyFrom(member.model)
    taken = _input(member)
    del model.graph.input[:], model.graph.value_info[:]
    model.graph.input.append(taken)
    if _opset(model) != opset:
        try:
            model = converted(model, opset)
        except ExportError as error:
            raise ExportError(f"{member.name}: {error}") from error
    return compose.add_prefix(model, f"member{place}_")


class _Part:
    """The nodes around one member: from the fusion's input to its own, and from its answer to its
    part of the embedding, `result`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.result = ""

    def pixels(self, wanted: Normalisation, given: Normalisation, target: str) -> None:
        """Make a member's input `target` of the fusion's, which is normalised as `given`."""
        kernel, bias = _change(wanted, given)
        if np.array_equal(kernel, np.eye(3)) and not bias.any():
            self._node("Identity", [INPUT], target)
            return
        inputs = [INPUT, self._weight("pixels_kernel", kernel.reshape(3, 3, 1, 1)),
                  self._weight("pixels_bias", bias)]  # fmt: skip
        self._node("Conv", inputs, target, kernel_shape=[1, 1])

    def weighted(self, answer: str, share: float, length: str) -> str:
        """Scale the member's answer: by the root of its share, and to `length`, the first member's,
        where that is given. Returns the name of the first member's length."""
        root = self._weight("root", np.float32(math.sqrt(share)))
        squares = self._node("Mul", [answer, answer], "squares")
        axis = self._weight("axis", np.array([1]), np.int64)
        summed = self._node("ReduceSum", [squares, axis], "summed", keepdims=1)
        mine = self._node("Sqrt", [summed], "length")
        if not length:
            self.result = self._node("Mul", [answer, root], "weighted")
            return mine
        safe = self._node("Max", [mine, self._weight("shortest", SHORTEST)], "safe_length")
        factor = self._node("Div", [length, safe], "stretch")
        scaled = self._node("Mul", [answer, factor], "scaled")
        self.result = self._node("Mul", [scaled, root], "weighted")
        return length

    def _node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = name if name.startswith("member") else f"{self._name}_{name}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _weight(self, name: str, array: Any, kind: type = np.float32) -> str:
        full = f"{self._name}_{name}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, kind), full))
        return full


def _change(
    wanted: Normalisation, given: Normalisation
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Kernel (3, 3) and bias (3,) from channels normalised one way to those of another."""
    order = np.eye(3) if wanted.rgb == given.rgb else np.eye(3)[::-1]
    old_mean, old_std, mean, std = (
        np.asarray(_channels(one), np.float64)
        for one in (given.mean, given.std, wanted.mean, wanted.std)
    )
    kernel = order * old_std / std[:, np.newaxis]
    return kernel, (order @ old_mean - mean) / std


def _channels(value: Channels) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,) * 3
