"""One parent and its children: connections, deaths, replacement, stops."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


class Service:
    """The light service as a process."""

    def __init__(self, count: int, **given: Any) -> None:
        command = [sys.executable, "-m", "tests.processes.light", "parent"]
        self.process = subprocess.Popen(
            [*command, json.dumps({"count": count, **given})],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.count = count
        self._connections: list[http.client.HTTPConnection] = []

    def until_up(self) -> "Service":
        """Wait until all its processes serve."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"
        until(lambda: len(self.pids()) == self.count)
        return self

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.connect()
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for one in self._connections:
            one.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def ask(self, path: str = "/") -> str:
        """The answer; asked again where a process died that had just got the connection."""
        while True:
            with (
                contextlib.suppress(http.client.RemoteDisconnected, ConnectionResetError),
                contextlib.closing(self.connect()) as connection,
            ):
                return answer(connection, path)

    def pids(self) -> set[int]:
        """The processes that serve."""
        return {one["pid"] for one in json.loads(self.ask("/ready"))["answers"]}

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ends(self) -> int:
        """Its exit status."""
        return self.process.wait(PATIENCE_S)


def answer(connection: http.client.HTTPConnection, path: str = "/") -> str:
    connection.request("GET", path)
    return connection.getresponse().read().decode()


@contextlib.contextmanager
def service(count: int = 2, **given: Any) -> Iterator[Service]:
    with contextlib.closing(Service(count, **given)) as started:
        yield started.until_up()


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_connections_go_to_the_process_with_the_fewest(loop: str) -> None:
    with service(asyncio=loop == "asyncio") as started:
        connections = [started.connect() for _ in range(10)]
        pids = [answer(one) for one in connections]
        assert sorted(Counter(pids).values()) == [5, 5]
        for one, pid in zip(connections, pids, strict=True):
            if pid == pids[0]:
                one.close()  # five places are free there

        def all_in_the_first() -> bool:
            """Once the parent has heard of them."""
            more = [started.connect() for _ in range(5)]
            found = {answer(one) for one in more}
            for one in more:
                one.close()
            return found == {pids[0]}

        until(all_in_the_first)


def test_a_process_that_dies_is_replaced_and_the_others_serve() -> None:
    with service() as started:
        before = started.pids()
        os.kill(min(before), signal.SIGKILL)
        for _ in range(20):
            assert int(started.ask()) != min(before)
        after = until(lambda: len(found := started.pids()) == 2 and found != before and found)
        assert len(after - before) == 1


def test_a_process_that_hangs_is_killed() -> None:
    with service(silent_s=6.0) as started:
        before = started.pids()
        os.kill(min(before), signal.SIGSTOP)
        after = until(lambda: len(found := started.pids()) == 2 and found != before and found)
        assert min(before) not in after


def test_a_suspended_parent_does_not_blame_its_processes() -> None:
    """`docker pause` suspends all of them: nobody was asked meanwhile."""
    with service(silent_s=6.0) as started:
        before = started.pids()
        started.send(signal.SIGSTOP)
        time.sleep(8.0)  # more than `silent_s`
        started.send(signal.SIGCONT)
        for _ in range(3):
            assert started.pids() == before
            time.sleep(0.3)  # the answers of others are good for a short time


def test_a_process_that_hangs_does_not_delay_a_stop() -> None:
    """Not for as long as an answer may take."""
    with service(silent_s=12.0, finish_s=600.0) as started:
        os.kill(min(started.pids()), signal.SIGSTOP)
        time.sleep(7.0)  # more than half of `silent_s`
        started.send(signal.SIGTERM)
        assert started.ends() == 0


@contextlib.contextmanager
def no_request_is_lost(started: Service) -> Iterator[None]:
    """Meanwhile four clients ask all the time."""
    done, failures, answers = threading.Event(), list[Exception](), list[str]()

    def ask_all_the_time() -> None:
        connection = started.connect()
        while not done.is_set():
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                answers.append(response.read().decode())
                if response.getheader("connection") == "close":
                    connection.close()
                    connection = started.connect()
            except Exception as error:  # noqa: BLE001 (none may happen)
                failures.append(error)
                return

    clients = [threading.Thread(target=ask_all_the_time) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        done.set()
        for client in clients:
            client.join(PATIENCE_S)
    assert failures == []
    assert answers


def test_processes_are_replaced_and_no_request_is_lost() -> None:
    with service() as started, no_request_is_lost(started):
        before = started.pids()
        started.send(signal.SIGHUP)
        until(lambda: not before & started.pids() and len(started.pids()) == 2)


def test_a_sum_never_falls() -> None:
    with service() as started:
        for _ in range(10):
            started.ask()
        (victim, *_) = started.pids()
        time.sleep(0.3)  # answers are good for other clients for that long
        before = requests(started)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(started.pids()) == 2 and victim not in started.pids())
        time.sleep(0.3)
        assert requests(started) >= before >= 10


def requests(started: Service) -> float:
    text: str = json.loads(started.ask("/sum"))
    return float(text.split("\nrequests_total ")[1].partition("\n")[0])


def test_a_stop_answers_what_has_connected() -> None:
    with service(drain_s=0.5) as started:
        kept = started.connect()
        answer(kept)
        started.send(signal.SIGTERM)
        late = [started.connect() for _ in range(20)]
        assert all(answer(one) for one in late)
        kept.request("GET", "/")
        assert kept.getresponse().getheader("connection") == "close"
        assert started.ends() == 0
        with pytest.raises(ConnectionRefusedError):
            started.connect()


def test_a_second_signal_ends_at_once() -> None:
    with service(drain_s=600.0) as started:
        children = psutil.Process(started.process.pid).children()
        started.send(signal.SIGTERM)
        kept = started.connect()

        def is_draining() -> bool:
            """Two signals that come before the first is noticed are one."""
            kept.request("GET", "/")
            response = kept.getresponse()
            response.read()
            return response.getheader("connection") == "close"

        until(is_draining)
        started.send(signal.SIGTERM)
        assert started.ends() == 0
        assert psutil.wait_procs(children, PATIENCE_S)[1] == []


def test_a_signal_to_all_processes_at_once_replaces_none() -> None:
    """A manager of services sends it (systemd does), and here the parent gets it last."""
    with service(drain_s=600.0) as started:
        kept = [started.connect() for _ in range(started.count)]
        children = psutil.Process(started.process.pid).children()
        started.send(signal.SIGSTOP)
        for child in children:
            child.terminate()
        for one in kept:
            until(lambda one=one: json.loads(answer(one, "/state"))[0])
        started.send(signal.SIGTERM)
        started.send(signal.SIGCONT)
        for _ in range(2 * started.count):
            until(lambda: json.loads(started.ask("/state")) == [True, True])
        assert set(children) == set(psutil.Process(started.process.pid).children())


def test_a_process_that_is_asked_to_end_is_replaced() -> None:
    with service() as started, no_request_is_lost(started):
        before = started.pids()
        os.kill(min(before), signal.SIGTERM)
        after = until(lambda: len(found := started.pids()) == 2 and found != before and found)
        assert min(before) not in after


def test_one_that_is_being_replaced_hears_of_a_stop() -> None:
    with service(drain_s=600.0) as started:
        kept = [started.connect() for _ in range(20)]
        (victim, *_) = started.pids()
        its = iter([one for one in kept if int(answer(one)) == victim])
        os.kill(victim, signal.SIGTERM)
        until(lambda: len(psutil.Process(started.process.pid).children()) > started.count)
        started.send(signal.SIGTERM)
        until(lambda: json.loads(started.ask("/state"))[1])
        # Each of its connections ends with the next answer.
        until(lambda: json.loads(answer(next(its), "/state")) == [True, True])


def networks_of(started: Service) -> psutil.Process:
    """The process that runs the networks, once it can be asked."""
    until(lambda: "likeness_batches" in started.ask("/sum"))
    children = psutil.Process(started.process.pid).children()
    (found,) = [one for one in children if any('"networks"' in part for part in one.cmdline())]
    return found


@pytest.mark.parametrize("to_all", [True, False])
def test_networks_are_there_until_those_that_need_them_have_ended(to_all: bool) -> None:
    """Even if a manager of services sends its signal to all processes (systemd does)."""
    with service(networks=True, drain_s=600.0) as started:
        networks, kept = networks_of(started), started.connect()
        if to_all:
            networks.terminate()
        started.send(signal.SIGTERM)

        def is_draining() -> bool:
            kept.request("GET", "/")
            response = kept.getresponse()
            response.read()
            return response.getheader("connection") == "close"

        until(is_draining)
        children = psutil.Process(started.process.pid).children()
        assert networks in children
        assert networks.status() != psutil.STATUS_ZOMBIE
        for one in children:
            if one != networks:
                one.kill()
        assert psutil.wait_procs(children, PATIENCE_S)[1] == []
        assert started.ends() == 0


@pytest.mark.parametrize("to_networks", [True, False])
def test_networks_are_replaced_with_those_that_ask_them(to_networks: bool) -> None:
    """A signal to the parent, or to the process that runs them. The old ones run until those that
    ask them have ended."""
    with service(networks=True) as started, no_request_is_lost(started):
        first, before = networks_of(started), started.pids()
        if to_networks:
            first.terminate()
        else:
            started.send(signal.SIGHUP)
        until(lambda: not before & started.pids() and len(started.pids()) == 2)
        until(lambda: not first.is_running())
        until(lambda: len(psutil.Process(started.process.pid).children()) == 3)
        assert networks_of(started) != first


@pytest.mark.parametrize("failing", ["networks_fail_with", "fails_with"])
def test_where_replacing_fails_those_that_serve_are_kept(tmp_path: Path, failing: str) -> None:
    """Whether new networks do not start, or a process that asks them; the next try succeeds."""
    marker = tmp_path / "fails"
    with service(networks=True, **{failing: str(marker)}) as started, no_request_is_lost(started):
        first, before = networks_of(started), started.pids()
        marker.touch()
        started.send(signal.SIGHUP)
        children = psutil.Process(started.process.pid).children
        until(lambda: len(children()) > 3)
        until(lambda: len(children()) == 3)
        assert started.pids() == before
        assert networks_of(started) == first
        marker.unlink()
        started.send(signal.SIGHUP)
        until(lambda: not before & started.pids() and len(started.pids()) == 2)
        until(lambda: not first.is_running())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_children_end_with_their_parent() -> None:
    with service() as started:
        children = psutil.Process(started.process.pid).children()
        assert len(children) == 2
        started.send(signal.SIGKILL)
        started.ends()
        assert psutil.wait_procs(children, PATIENCE_S)[1] == []


def test_a_service_that_cannot_start_ends_with_its_child_s_status() -> None:
    with contextlib.closing(Service(3, fails=2)) as started:
        assert started.ends() == 2
        with pytest.raises(ConnectionRefusedError):
            started.connect()


def test_without_a_process_for_the_networks_nobody_waits_for_them() -> None:
    given = {"networks_command": ["/no/such/program"]}
    with contextlib.closing(Service(2, **given)) as started:
        assert started.ends() == 2
        assert started.process.stdout is not None
        assert started.process.stdout.read() == ""


def test_a_client_that_leaves_at_once_leaves_no_trace() -> None:
    with service() as started:
        for _ in range(50):
            gone = socket.create_connection(("127.0.0.1", started.port))
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            gone.close()
        connections = [started.connect() for _ in range(8)]
        assert all(answer(one) for one in connections)
