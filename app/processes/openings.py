"""What connects the processes that serve with the one that runs the networks."""

import socket
from dataclasses import dataclass
from typing import Self

from app.processes.child import Role
from app.processes.plan import Plan


@dataclass(frozen=True, slots=True)
class Openings:
    """A pair of sockets without a name: those that serve send sockets of their own through one end,
    and whichever process runs the networks takes them from the other. The parent keeps both ends,
    so that they outlast each process. `None` where each process has its own networks."""

    pair: tuple[socket.socket, socket.socket] | None

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Those that a plan needs."""
        if plan.networks is None:
            return cls(None)
        return cls(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))

    def end_of(self, role: Role) -> int:
        """The descriptor for a child of that role; -1 if there is none."""
        if self.pair is None:
            return -1
        return self.pair[role is Role.NETWORKS].fileno()
