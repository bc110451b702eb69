"""The attacks of `attacks/`, each a test against one service that lives through all of them."""

from collections.abc import Iterator

import psutil
import pytest

from tests.hostile import attacks as _attacks  # noqa: F401 - they add themselves to the list
from tests.hostile.run import run
from tests.hostile.scenario import ATTACKS, Attack
from tests.hostile.service import running
from tests.hostile.target import Target

pytestmark = pytest.mark.chaos


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
