"""The table of connections: which of them is closed for another, and places for health."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api import connections as module
from app.api.connections import KEPT_FOR_HEALTH, ConnectionLimits, Connections, HandshakeStage
from app.services import build_services
from app.settings import Settings
from tests.api.conftest import run_server


class Held:
    """A connection as the table knows it."""

    def __init__(self) -> None:
        self.crowded = False
        self.gone = False

    def check(self, now: float) -> None:
        pass

    def give_up(self) -> None:
        self.gone = True


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Connections:
    table = Connections(ConnectionLimits(most=KEPT_FOR_HEALTH + 2))
    monkeypatch.setattr(table, "_sweep_later", lambda: None)
    monkeypatch.setattr(table, "_after_reading", lambda then: then())
    return table


def add(table: Connections, count: int = 1) -> list[Held]:
    made = [Held() for _ in range(count)]
    for one in made:
        table.add(one)
    return made


def test_the_one_that_has_sent_nothing_for_longest_is_closed(
    table: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEW_GRACE_S", 0.0)
    kept, new = add(table, 2)
    table.busy(kept)
    table.idle(kept)
    (next_,) = add(table)
    assert (new.gone, kept.gone, next_.gone, next_.crowded) == (True, False, False, False)


def test_then_those_between_two_requests(table: Connections) -> None:
    kept, new = add(table, 2)  # the new one has had no time yet to send anything
    table.busy(kept)
    table.idle(kept)
    (next_,) = add(table)
    assert (kept.gone, new.gone, next_.gone) == (True, False, False)


def test_a_connection_that_was_not_read_yet_is_not_closed(
    table: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_after_reading", lambda then: None)
    for one in add(table, 2):
        table.busy(one)
    first, second = *add(table), *add(table)
    assert [first.gone, second.gone, first.crowded, second.crowded] == [False, False, True, True]


@pytest.fixture
def handshakes(table: Connections) -> list[Held]:
    """As many connections as may be in a TLS handshake."""
    table.limits = ConnectionLimits(most=100)
    made = [Held() for _ in range(50)]
    for one in made:
        table.add(one, in_handshake=True)
    assert not any(one.gone for one in made)
    return made


@pytest.fixture
def no_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client should have answered the server's part of a handshake before it was sent."""
    monkeypatch.setattr(module, "ANSWER_S", -1.0)


def fill(table: Connections) -> None:
    """Use all places that are not kept for health, with connections at work."""
    for one in add(table, table.limits.most - KEPT_FOR_HEALTH - len(table)):
        table.busy(one)


def closed_for_another(table: Connections, handshakes: list[Held]) -> list[int]:
    """Which of them are closed when there is one more, which is accepted."""
    another = Held()
    table.add(another, in_handshake=True)
    assert not another.gone
    return [at for at, one in enumerate(handshakes) if one.gone]


def test_the_oldest_that_has_sent_nothing_is_closed_for_another_handshake(
    table: Connections, handshakes: list[Held]
) -> None:
    table.reached(HandshakeStage.BEGUN, handshakes[0])
    table.reached(HandshakeStage.WAITING, handshakes[1])
    assert closed_for_another(table, handshakes) == [2]


@pytest.mark.usefixtures("no_time_to_answer")
def test_else_the_oldest_whose_client_has_not_answered_in_time(
    table: Connections, handshakes: list[Held]
) -> None:
    for at, one in enumerate(handshakes):
        table.reached(HandshakeStage.BEGUN if at in (7, 9) else HandshakeStage.WAITING, one)
    assert closed_for_another(table, handshakes) == [7]


def test_the_time_to_answer_begins_with_the_servers_part(
    table: Connections, handshakes: list[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_after_reading", lambda then: None)
    later = module.time.monotonic() + 60
    monkeypatch.setattr(module.time, "monotonic", lambda: later)
    for one in handshakes:
        table.reached(HandshakeStage.BEGUN, one)
    assert closed_for_another(table, handshakes) == []
    monkeypatch.setattr(module.time, "monotonic", lambda: later + module.ANSWER_S + 0.1)
    assert closed_for_another(table, handshakes) == [0]


@pytest.mark.parametrize("stage", [HandshakeStage.BEGUN, HandshakeStage.WAITING])
def test_while_there_is_room_each_has_time(
    table: Connections, handshakes: list[Held], stage: HandshakeStage
) -> None:
    for one in handshakes:
        table.reached(stage, one)
    assert closed_for_another(table, handshakes) == []


def test_in_a_full_table_the_oldest_whose_client_has_not_answered_is_closed_at_once(
    table: Connections, handshakes: list[Held]
) -> None:
    (kept,) = add(table)
    table.busy(kept)
    table.idle(kept)
    for at, one in enumerate(handshakes):
        table.reached(HandshakeStage.BEGUN if at in (7, 9) else HandshakeStage.WAITING, one)
    fill(table)
    assert closed_for_another(table, handshakes) == [7]
    assert not kept.gone, "one was closed, which makes room enough"


def test_in_a_full_table_else_the_newest_of_those_that_the_server_keeps_waiting(
    table: Connections, handshakes: list[Held]
) -> None:
    for one in handshakes:
        table.reached(HandshakeStage.WAITING, one)
    fill(table)
    assert closed_for_another(table, handshakes) == [49]


@pytest.mark.usefixtures("no_time_to_answer")
def test_a_handshake_that_was_not_read_yet_is_not_silent(
    table: Connections, handshakes: list[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in handshakes:
        table.reached(HandshakeStage.BEGUN, one)
    monkeypatch.setattr(table, "_after_reading", lambda then: None)
    arrived = Held()
    table.add(arrived, in_handshake=True)
    assert closed_for_another(table, [*handshakes, arrived]) == [0, 1]


def test_where_all_are_at_work_health_has_places_left(table: Connections) -> None:
    for one in add(table, 2):
        table.busy(one)
    crowded = []
    for _ in range(KEPT_FOR_HEALTH):
        crowded += add(table)
        table.busy(crowded[-1])
    assert all(one.crowded and not one.gone for one in crowded)
    (last,) = add(table)
    assert last.gone
    assert len(table) == KEPT_FOR_HEALTH + 2


def test_a_connection_is_crowded_only_while_the_table_is(table: Connections) -> None:
    """A client keeps it, and tries again on it."""
    busy = add(table, 2)
    for one in busy:
        table.busy(one)
    (last,) = add(table)
    assert table.is_crowded(last)
    table.remove(busy[0])
    assert not table.is_crowded(last)
    add(table)
    assert not table.is_crowded(last)


def test_the_limit_stays_below_the_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def descriptors(count: int) -> None:
        monkeypatch.setattr(module.resource, "getrlimit", lambda _: (count, count))

    settings = Settings(max_connections=1024)
    for count, most in (
        (256, 160),
        (64, 32),
        (100_000, 1024),
        (module.resource.RLIM_INFINITY, 1024),
    ):
        descriptors(count)
        assert ConnectionLimits.of(settings).most == most


MOST = 40


def test_crowded_connections_are_answered_health_alone(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "KEPT_FOR_HEALTH", MOST)  # every connection is one of those
    settings = Settings(data_dir=tmp_path, workers=1, max_connections=MOST)
    with run_server(build_services(settings)) as url:
        held = httpx.Client(base_url=url)
        monkeypatch.setattr(Connections, "_longest_idle", lambda _: None)
        assert held.get("/livez").status_code == 200
        answer = httpx.get(f"{url}/v1/collections")
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert httpx.get(f"{url}/readyz").status_code == 200
        held.close()
