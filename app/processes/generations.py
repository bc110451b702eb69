"""The processes that ask the same networks, and the generation that takes their place."""

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, Self


class Role(Enum):
    """SERVING: answers requests. NETWORKS: runs the networks for those that do."""

    SERVING = auto()
    NETWORKS = auto()


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """Processes that serve, and the one that runs the networks for them.

    A pair of sockets without a name connects them: those that serve send sockets of their own
    through one end, and whichever process runs the networks takes them from the other. The parent
    keeps both ends, so that they outlast each process. `None` where each process has its own
    networks."""

    pair: tuple[socket.socket, socket.socket] | None

    @classmethod
    def new(cls, *, with_networks: bool) -> Self:
        """Without any process yet."""
        if not with_networks:
            return cls(None)
        return cls(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))

    def end_of(self, role: Role) -> int:
        """The descriptor for a process of that role; -1 if there is none."""
        if self.pair is None:
            return -1
        return self.pair[role is Role.NETWORKS].fileno()

    def close(self) -> None:
        """Once it has no process any more."""
        for end in self.pair or ():
            end.close()


class GenerationMember(Protocol):
    """A process of a generation."""

    @property
    def role(self) -> Role: ...
    @property
    def generation(self) -> Generation: ...


class Generations:
    """Those that have processes. `current`: new processes that serve belong to it. `coming`: it
    becomes the current one when its networks run; until then, and if they never do, the others
    serve."""

    def __init__(self, *, with_networks: bool) -> None:
        self._with_networks = with_networks
        self.current = Generation.new(with_networks=with_networks)
        self.coming: Generation | None = None
        self._all = [self.current]

    def begin(self) -> Generation:
        """A generation to come."""
        self.coming = Generation.new(with_networks=self._with_networks)
        self._all.append(self.coming)
        return self.coming

    def take_over(self) -> None:
        """The coming generation becomes the current one."""
        assert self.coming is not None, "begin comes first"
        self.current, self.coming = self.coming, None

    def return_to(self, serving: Sequence[GenerationMember]) -> None:
        """The replacement has failed: unless some already serve in the current generation, the one
        of those that serve becomes the current one again."""
        if serving and all(one.generation is not self.current for one in serving):
            self.current = serving[0].generation

    def is_used(
        self, one: Generation, members: Iterable[GenerationMember], *, stopping: bool
    ) -> bool:
        """Whether its networks are, or will be, asked."""
        if not stopping and one in (self.current, self.coming):
            return True
        return any(m.role is Role.SERVING and m.generation is one for m in members)

    def without_networks(self, members: Iterable[GenerationMember]) -> list[Generation]:
        """Those whose networks are used, and that have no process for them."""
        running = {one.generation for one in members if one.role is Role.NETWORKS}
        return [
            one for one in self._all
            if one is not self.coming and one not in running
            and self.is_used(one, members, stopping=False)
        ]  # fmt: skip

    def forget_unused(self, members: Iterable[GenerationMember]) -> None:
        """Close those that have no process and will have none."""
        kept = {self.current, self.coming, *(one.generation for one in members)}
        for one in self._all:
            if one not in kept:
                one.close()
        self._all = [one for one in self._all if one in kept]
