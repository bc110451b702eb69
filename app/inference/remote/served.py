"""The networks of a pack as one process offers them to others."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from app.inference.pack_spec import ModelPack
from app.inference.remote.greeting import Greeting, Head, NetworkFacts
from app.types import FloatArray, Image


class SubmittingNetwork(Protocol):
    """A network that takes images without waiting for its answers."""

    @property
    def output_names(self) -> list[str]: ...
    @property
    def cpu_nodes(self) -> tuple[str, ...]: ...
    def submit(self, images: Image) -> Sequence[Future[list[FloatArray]]]:
        """The answers to come, in parts of some images each, in their order."""


@dataclass(frozen=True, slots=True)
class ServedNetwork:
    """A network, and what is said of it."""

    facts: NetworkFacts
    network: SubmittingNetwork


def served_network(
    name: str,
    network: SubmittingNetwork,
    shape: tuple[int, int, int],
    levels: tuple[int, ...] = (),
) -> ServedNetwork:
    """A network of images of one shape (height, width, 3); it is run once, for the shapes of its
    answers. Raises what the network raises."""
    (answer,) = network.submit(np.zeros((1, *shape), np.uint8))
    heads = tuple(Head(shape=head.shape[1:], dtype=str(head.dtype)) for head in answer.result())
    facts = NetworkFacts(
        name=name,
        shape=shape,
        heads=heads,
        output_names=tuple(network.output_names),
        levels=levels,
        cpu_nodes=network.cpu_nodes,
    )
    return ServedNetwork(facts, network)


def pack_identity(pack: ModelPack) -> tuple[str, ...]:
    """Its name, and the digests of its networks in their order."""
    return pack.name, *(network.sha256 for network in pack.networks)


def greeting_of(pack: ModelPack, provider: str, served: Sequence[ServedNetwork]) -> Greeting:
    """What is said to each process that asks."""
    return Greeting(
        pack=pack_identity(pack), provider=provider, networks=tuple(one.facts for one in served)
    )
