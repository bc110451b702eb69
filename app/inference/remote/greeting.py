"""What the process that runs the networks says of them to a process that asks them."""

import math

import numpy as np
from pydantic import BaseModel, ConfigDict


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Head(_Frozen):
    """One output for one image."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes for one image."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class NetworkFacts(_Frozen):
    """A network that takes (n, *shape) uint8 images. `levels`: those of a detector that answers
    candidates."""

    name: str
    shape: tuple[int, int, int]
    heads: tuple[Head, ...]
    output_names: tuple[str, ...]
    levels: tuple[int, ...] = ()
    cpu_nodes: tuple[str, ...] = ()

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return math.prod(self.shape)

    @property
    def answer_bytes(self) -> int:
        """Bytes of the answers to one image."""
        return sum(head.nbytes for head in self.heads)


class Greeting(_Frozen):
    """All networks of a pack. `pack` is its name and the digests of its networks; a slot has
    `image_bytes` for images, and `answer_bytes` for answers after them."""

    pack: tuple[str, ...]
    provider: str
    networks: tuple[NetworkFacts, ...]

    @property
    def image_bytes(self) -> int:
        """One image of the network that takes the largest; of others, as many as fit there."""
        return max(network.image_bytes for network in self.networks)

    @property
    def answer_bytes(self) -> int:
        """What the largest answers to one slot's images take."""
        return max(network.answer_bytes * self.most(network) for network in self.networks)

    def most(self, network: NetworkFacts) -> int:
        """How many images of a network one request has at most."""
        return self.image_bytes // network.image_bytes
