"""What an attack is, and the list of all."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.hostile.target import Target


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to hurt the service. `run` returns how many requests it sent."""

    name: str
    run: Callable[[Target], int]
    # The services that it is tried against: http and https.
    schemes: frozenset[str] = frozenset({"http"})
    # Memory that an attack may take beyond the general limit, MiB: state why beside it.
    more_memory_mib: int = 0


ATTACKS: list[Attack] = []
CONTROL_S = 10.0


def _nothing(_: Target) -> int:
    time.sleep(CONTROL_S)
    return 0


# No attack, only the ordinary calls: its times are what the machine and its other work add.
CONTROL = Attack("nothing: the control", _nothing, frozenset({"http", "https"}))


def attack(
    name: str, *schemes: str, more_memory_mib: int = 0
) -> Callable[[Callable[[Target], int]], Attack]:
    """Add a function to the list under a name that a table can show. `schemes`: of the services
    that it is tried against; http alone if none is given."""

    def add(run: Callable[[Target], int]) -> Attack:
        one = Attack(name, run, frozenset(schemes or ("http",)), more_memory_mib)
        ATTACKS.append(one)
        return one

    return add
