"""Recognisers of files and packs -> the one recogniser of a pack: itself, or their fusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from app.errors import PackError
from app.inference.pack_spec import ModelPack
from app.inference.packs import digest
from app.lab.export.faces import Normalisation, parse_channels
from app.lab.export.fusion import Member, fuse, identity_of
from app.lab.export.graph import read_model
from app.lab.export.parity import ExportError, open_session
from app.types import Channels

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RecogniserFile:
    """An ONNX recogniser: how pixels become its input, and its weight where several are joined."""

    file: Path
    mean: Channels
    std: Channels
    colour: str
    weight: float = 1.0


def described(
    base: ModelPack,
    files: Sequence[Path],
    *,
    weights: Sequence[float] | None = None,
    means: Sequence[str] | None = None,
    stds: Sequence[str] | None = None,
    colours: Sequence[str] | None = None,
) -> tuple[RecogniserFile, ...]:
    """The recognisers of a command line. An option is given not at all, which means as in `base`,
    once for all files, or once for each. Raises PackError."""
    count = len(files)
    if weights and count < 2:
        raise PackError("--weight is for several recognisers: give --recogniser more than once.")
    spec = base.recogniser
    found = []
    for file, weight, mean, std, colour in zip(
        files,
        _for_each("weight", weights, count),
        _for_each("mean", means, count),
        _for_each("std", stds, count),
        _for_each("colour", colours, count),
        strict=True,
    ):
        order = colour or spec.colour
        if order not in ("rgb", "bgr"):
            raise PackError(f"--colour is rgb or bgr; not {order}.")
        rgb = order == "rgb"
        found.append(
            RecogniserFile(
                file,
                spec.mean if mean is None else _channels(mean, "mean", rgb=rgb),
                spec.std if std is None else _channels(std, "std", rgb=rgb),
                order,
                1.0 if weight is None else weight,
            )
        )
    return tuple(found)


def _for_each(option: str, given: Sequence[T] | None, count: int) -> Sequence[T | None]:
    if not given:
        return [None] * count
    if len(given) == 1 and option != "weight":
        return [given[0]] * count
    if len(given) != count:
        raise PackError(
            f"--{option} was given {len(given)} times for {count} recognisers: give it once for "
            "each, in their order."
        )
    return given


def _channels(text: str, option: str, *, rgb: bool) -> Channels:
    try:
        values = parse_channels(text, option, rgb=rgb)
    except ExportError as error:
        raise PackError(f"{error}.") from error
    numbers = values if isinstance(values, tuple) else (values,)
    if option == "std" and min(numbers) <= 0:
        raise PackError(f"--std is above 0; not {text}.")
    return values


def member_of_file(given: RecogniserFile, base: ModelPack) -> Member:
    """A file as a member of a fusion; that of the recogniser of `base` under the identity that the
    recogniser has there. Raises PackError."""
    found = digest(given.file)
    spec = base.recogniser
    identity = spec.proven_equal_to or found if found == spec.sha256 else found
    normalisation = Normalisation(given.mean, given.std, given.colour == "rgb")
    try:
        model = read_model(given.file)
    except ExportError as error:
        raise PackError(f"{error}.") from error
    return Member(given.file.name, model, normalisation, given.weight, identity)


def member_of_pack(pack: ModelPack, weight: float = 1.0) -> Member:
    """The recogniser of a pack as a member of a fusion. Raises PackError."""
    spec = pack.recogniser
    given = RecogniserFile(pack.recogniser_path, spec.mean, spec.std, spec.colour, weight)
    return member_of_file(given, pack)


def write_joined(
    members: Sequence[Member], out: Path, *, keep_prelu: bool = False
) -> dict[str, Any]:
    """Write the fusion of recognisers to `out`. Returns what pack.toml says of it: its input, its
    dimension, and its identity in place of the network that it was exported from.

    Raises PackError.
    """
    first = members[0].normalisation
    try:
        fuse(members, out, keep_prelu=keep_prelu)
        return {
            "input_size": members[0].size,
            "colour": "rgb" if first.rgb else "bgr",
            "mean": first.mean,
            "std": first.std,
            "dimension": int(open_session(out).get_outputs()[0].shape[1]),
            "proven_equal_to": identity_of(members),
        }
    except ExportError as error:
        raise PackError(f"The recognisers cannot be joined: {error}.") from error
