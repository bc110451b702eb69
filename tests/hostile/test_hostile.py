"""The attacks of `attacks/`, each a test against one service that lives through all of them; those
for which processes share something also against services of two and four."""

from collections.abc import Iterator

import psutil
import pytest

from tests.hostile import attacks as _attacks  # noqa: F401 - they add themselves to the list
from tests.hostile.run import run
from tests.hostile.scenario import ATTACKS, Attack
from tests.hostile.service import running
from tests.hostile.target import Target

pytestmark = pytest.mark.chaos
# The parent accepts connections, limits are divided, kept answers and imports are shared.
SHARED = [
    "new connections as fast as they are taken",
    "8 uploads that announce 4 GB and send 2 bytes",
    "one enrollment 30 times at once under one Idempotency-Key",
    "the process that reads an archive is killed",
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Target, psutil.Process]]:
    with running(tmp_path_factory.mktemp("hostile")) as found:
        yield found


@pytest.fixture(scope="module")
def tls_service(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Target, psutil.Process]]:
    with running(tmp_path_factory.mktemp("hostile"), "https") as found:
        yield found


@pytest.fixture(scope="module", params=[2, 4])
def services(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Target, psutil.Process]]:
    """A service of several processes."""
    settings = {"LIKENESS_PROCESSES": str(request.param)}
    with running(tmp_path_factory.mktemp("hostile"), **settings) as found:
        assert len(found[1].children()) == request.param
        yield found


def of(scheme: str) -> list[Attack]:
    return [one for one in ATTACKS if scheme in one.schemes]


@pytest.mark.parametrize("attack", of("https"), ids=lambda attack: attack.name)
def test_the_service_stays_up_over_tls(
    attack: Attack, tls_service: tuple[Target, psutil.Process]
) -> None:
    assert run(attack, *tls_service).faults == []


@pytest.mark.parametrize("attack", of("http"), ids=lambda attack: attack.name)
def test_the_service_stays_up(attack: Attack, service: tuple[Target, psutil.Process]) -> None:
    assert run(attack, *service).faults == []


@pytest.mark.parametrize("name", SHARED)
def test_a_service_of_several_processes_stays_up(
    name: str, services: tuple[Target, psutil.Process]
) -> None:
    (attack,) = [one for one in ATTACKS if one.name == name]
    assert run(attack, *services).faults == []
