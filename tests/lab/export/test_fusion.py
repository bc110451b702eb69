"""Several recognisers as one network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from app.lab.export import parity
from app.lab.export.faces import IMAGENET_MEAN, IMAGENET_STD, Normalisation
from app.lab.export.fusion import Member, fuse, identity_of
from app.lab.export.parity import ExportError

SIDE = 16
FACES = np.random.default_rng(1).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)


def network(
    dimension: int,
    *,
    seed: int,
    size: int = SIDE,
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    scale: float = 1.0,
) -> onnx.ModelProto:
    """Pixels times a matrix."""
    weights = scale * np.random.default_rng(seed).normal(size=(3 * size * size, dimension))
    nodes = [
        helper.make_node("Cast", ["x"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "recogniser",
        [helper.make_tensor_value_info("x", kind, ["n", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", dimension])],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset > 11 else 6
    )


FIRST = Member("first.onnx", network(5, seed=1), Normalisation(127.5, 128.0), 1.0, "a" * 64)
SECOND = Member(
    "second.onnx",
    network(3, seed=2),
    Normalisation(IMAGENET_MEAN[::-1], IMAGENET_STD[::-1], rgb=False),
    3.0,
    "b" * 64,
)


def answers(path: Path, given: Normalisation) -> NDArray[np.float32]:
    return parity.run(parity.open_session(path), given.apply(FACES))[0]


def alone(member: Member) -> NDArray[np.float32]:
    session = parity.open_session_of(member.model)
    return parity.run(session, member.normalisation.apply(FACES))[0]


def cosines(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T, np.float32)


def test_similarities_are_the_weighted_mean_of_the_members(tmp_path: Path) -> None:
    fuse([FIRST, SECOND], tmp_path / "both.onnx")
    joined = answers(tmp_path / "both.onnx", FIRST.normalisation)
    assert joined.shape == (4, 8)
    expected = (cosines(alone(FIRST)) + 3 * cosines(alone(SECOND))) / 4
    np.testing.assert_allclose(cosines(joined), expected, atol=1e-5)


def test_the_length_is_that_of_the_first_member(tmp_path: Path) -> None:
    fuse([FIRST, SECOND], tmp_path / "both.onnx")
    joined = answers(tmp_path / "both.onnx", FIRST.normalisation)
    lengths = np.linalg.norm(alone(FIRST), axis=1)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), lengths, rtol=1e-5)


def test_three_members_of_different_operator_sets(tmp_path: Path) -> None:
    third = Member("third.onnx", network(4, seed=3, opset=11), Normalisation(0.0, 1.0), 1.0, "c")
    second = replace(SECOND, model=network(3, seed=2, opset=18))
    fuse([FIRST, second, third], tmp_path / "all.onnx")
    joined = answers(tmp_path / "all.onnx", FIRST.normalisation)
    parts = [cosines(alone(member)) for member in (FIRST, second, third)]
    expected = (parts[0] + 3 * parts[1] + parts[2]) / 5
    np.testing.assert_allclose(cosines(joined), expected, atol=1e-5)


def test_the_same_members_make_the_same_file(tmp_path: Path) -> None:
    for name in ("one.onnx", "other.onnx"):
        fuse([FIRST, SECOND], tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ((FIRST, replace(SECOND, name="renamed.onnx", model=network(3, seed=9))), True),
        ((replace(FIRST, weight=2.0), replace(SECOND, weight=6.0)), True),
        ((FIRST, replace(SECOND, weight=1.0)), False),
        ((FIRST, replace(SECOND, identity="c" * 64)), False),
        ((FIRST, replace(SECOND, normalisation=Normalisation(0.0, 1.0))), False),
        ((SECOND, FIRST), False),
    ],
)
def test_the_identity_is_that_of_the_sources(other: tuple[Member, ...], same: bool) -> None:
    assert (identity_of(other) == identity_of([FIRST, SECOND])) is same


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (replace(SECOND, weight=0.0), "second.onnx is 0: a weight is from 0.001 to 1000"),
        (replace(SECOND, weight=float("nan")), "the weight of second.onnx is nan"),
        (replace(SECOND, weight=1e308), r"the weight of second.onnx is 1e\+308"),
        (
            replace(SECOND, model=network(3, seed=2, size=32)),
            "second.onnx takes faces of 32 x 32 pixels and first.onnx of 16 x 16",
        ),
        (
            replace(SECOND, model=network(3, seed=2, kind=TensorProto.UINT8)),
            "second.onnx takes uint8 pixels",
        ),
        # Of a face without a direction nothing can be said: the proof meets no number.
        (replace(SECOND, model=network(3, seed=2, scale=np.inf)), "outputs differ by nan"),
    ],
)
def test_what_cannot_be_joined(tmp_path: Path, second: Member, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        fuse([FIRST, second], tmp_path / "both.onnx")
    assert list(tmp_path.iterdir()) == []


def test_one_recogniser_is_no_fusion(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="two recognisers or more"):
        fuse([FIRST], tmp_path / "one.onnx")


def test_a_member_that_answers_zeros_adds_nothing(tmp_path: Path) -> None:
    """As a blank photo may: the embedding is then the first member's alone."""
    biased = network(3, seed=2)
    fuse([FIRST, replace(SECOND, model=biased)], tmp_path / "both.onnx")
    model = onnx.load(tmp_path / "both.onnx")
    for weight in model.graph.initializer:
        if weight.name == "member1_weights":
            weight.raw_data = bytes(len(weight.raw_data))
    joined = parity.run(parity.open_session_of(model), FIRST.normalisation.apply(FACES))[0]
    np.testing.assert_array_equal(joined[:, 5:], 0)
    assert np.isfinite(joined).all()
