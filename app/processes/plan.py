"""What a parent is to do."""

from collections.abc import Sequence
from dataclasses import dataclass

# A child answers from its event loop. One that does not for so long hangs, or is suspended.
SILENT_S = 30.0
# Before this a start is not given up: a migration or a database server may need minutes.
START_S = 900.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`command` starts a child, `count` of them serve. They have `drain_s` seconds from a stop
    until no connection is accepted any more, and then `finish_s` for what is under way. A child
    that does not answer for `silent_s` seconds is killed. `networks` starts one child more, which
    runs the networks for the others."""

    command: Sequence[str]
    count: int
    drain_s: float
    finish_s: float
    silent_s: float = SILENT_S
    networks: Sequence[str] | None = None
