"""`likeness serve` with 1, 2 and 4 processes, one of which is killed again and again: what was
acknowledged is kept, and every process answers by it at once."""

import http.client
import io
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from PIL import Image

from app.errors import PersonNotFound
from tests.chaos.gallery_process import Held, Ledger
from tests.chaos.served import Installation, Serving
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.chaos
CLIENTS, PERSONS = 4, 4
SAME_PHOTO = 0.9  # another photo of the person is less similar
Answer = tuple[int, dict[str, Any]]


class Caller:
    """Asks one service on connections of its own."""

    def __init__(self, url: str, count: int) -> None:
        """`count`: of processes."""
        address = urlsplit(url)
        self._host, self._port, self._count = str(address.hostname), address.port, count

    def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Raises OSError or HTTPException where there is no answer."""
        with closing(self._connect()) as connection:
            return exchange(connection, method, path, body)

    def ask_all(self, method: str, path: str, body: bytes = b"") -> list[Answer]:
        """The same of every process: connections that are opened at the same time go to the
        process with the fewest, one after the other, if no others come between them."""
        with ExitStack() as stack:
            opened = [stack.enter_context(closing(self._connect())) for _ in range(self._count)]
            for one in opened:
                one.connect()
            return [exchange(one, method, path, body) for one in opened]

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=PATIENCE_S)


def exchange(connection: http.client.HTTPConnection, method: str, path: str, body: bytes) -> Answer:
    connection.request(method, path, body, {"content-type": "image/jpeg"} if body else {})
    response = connection.getresponse()
    return response.status, json.loads(response.read() or b"{}")


class Client(threading.Thread):
    """Enrolls and deletes persons of its own, and searches by every process for what changed."""

    def __init__(
        self, number: int, service: Serving, count: int, photos: list[bytes], before: Ledger
    ) -> None:
        super().__init__()
        self.failures, self.stopped = list[object](), threading.Event()
        self._caller = Caller(service.url, count)
        self._photos = photos
        self._random = random.Random(number)
        self._persons = [f"{number}-{one}" for one in range(PERSONS)]
        self.ledger = Ledger({person: before.states(person) for person in self._persons})

    def run(self) -> None:
        while not self.stopped.is_set():
            person = self._random.choice(self._persons)
            photo = self._random.randrange(len(self._photos))
            action = "delete" if self._random.random() < 0.3 else "enroll"
            try:
                self._change(action, person, photo)
                self._check(person, photo)
            except (OSError, http.client.HTTPException):
                # Without an answer the person may be in more than one state.
                self.stopped.wait(0.02)
            except Exception as error:  # noqa: BLE001 (none may happen)
                self.failures.append(error)

    def _change(self, action: str, person: str, photo: int) -> None:
        self.ledger.begin(action, person, photo)
        if action == "enroll":
            path, body = f"/v1/enroll?person_id={person}", self._photos[photo]
            status, answer = self._caller.ask("POST", path, body)
        else:
            path = f"/v1/collections/default/persons/{person}"
            status, answer = self._caller.ask("DELETE", path)
        if status in {200, 202, 204}:
            self.ledger.end(action, person, photo, ("done", None))
        elif status == 404:
            self.ledger.end(action, person, photo, ("refused", PersonNotFound.code))
        elif status != 503:
            self.failures.append((action, status, answer))

    def _check(self, person: str, photo: int) -> None:
        states = self.ledger.states(person)
        if len(states) > 1:
            return
        (state,) = states
        path = "/v1/identify?top_k=100"
        for status, answer in self._caller.ask_all("POST", path, self._photos[photo]):
            if status == 200 and (person in holders(answer)) != (photo in state):
                self.failures.append((person, photo, state, holders(answer)))
            elif status not in {200, 503}:
                self.failures.append((status, answer))


def holders(answer: dict[str, Any]) -> set[str]:
    """The persons who have the very photo that was searched for."""
    (face,) = answer["faces"]
    return {one["person_id"] for one in face["candidates"] if one["similarity"] > SAME_PHOTO}


def processes_of(service: Serving) -> list[psutil.Process]:
    """Those that answer: the one, or the children of the parent."""
    parent = psutil.Process(service.process.pid)
    return parent.children() or [parent]


@contextmanager
def working(
    service: Serving, count: int, photos: list[bytes], ledger: Ledger
) -> Iterator[list["Client"]]:
    """Clients at work; afterwards they found nothing wrong, and the ledger has what they did."""
    started = [Client(number, service, count, photos, ledger) for number in range(CLIENTS)]
    for one in started:
        one.start()
    try:
        yield started
    finally:
        for one in started:
            one.stopped.set()
        for one in started:
            one.join(PATIENCE_S)
    assert [one.failures for one in started] == [[] for _ in started]
    ledger.allowed = {k: v for one in started for k, v in one.ledger.allowed.items()}


def settle(service: Serving, count: int, photos: list[bytes], ledger: Ledger) -> None:
    """Every process knows each person in one and the same allowed state, which is then the only
    one allowed."""
    caller = Caller(service.url, count)
    found: list[dict[str, Held]] = [{} for _ in range(count)]
    for number, photo in enumerate(photos):
        answers = caller.ask_all("POST", "/v1/identify?top_k=100", photo)
        for (status, answer), states in zip(answers, found, strict=True):
            assert status == 200, answer
            for person in holders(answer):
                states[person] = states.get(person, frozenset()) | {number}
    assert all(states == found[0] for states in found)
    for person in ledger.allowed:
        state = found[0].get(person, frozenset())
        assert state in ledger.states(person), person
        ledger.allowed[person] = {state}
    _, listed = caller.ask("GET", "/v1/collections/default/persons?limit=1000")
    assert {one["person_id"] for one in listed["items"]} == found[0].keys()
    assert found[0].keys() <= ledger.allowed.keys()


@pytest.fixture
def photo_bytes(photos: Path) -> list[bytes]:
    """Small ones, which are quickly analysed."""
    made = []
    for file in sorted(photos.glob("*.jpg")):
        with Image.open(file) as image:
            image.thumbnail((256, 256))
            image.save(buffer := io.BytesIO(), "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def kill_one(service: Serving) -> None:
    """SIGKILL to one of those that answer; the parent starts another one."""
    before = processes_of(service)
    victim = random.choice(before)
    victim.kill()
    until(lambda: len(found := processes_of(service)) == len(before) and victim not in found)
    until(lambda: service.ask("GET", "/readyz").status_code == 200)


def until_more(clients: list[Client]) -> None:
    """Wait until each of them was acknowledged three more operations."""
    wanted = [(one, one.ledger.acknowledged + 3) for one in clients]
    until(lambda: all(one.ledger.acknowledged >= count for one, count in wanted))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_nothing_acknowledged_is_lost(tmp_path: Path, photo_bytes: list[bytes], count: int) -> None:
    settings = {"LIKENESS_PROCESSES": str(count), "LIKENESS_MAX_PENDING": "64"}
    installation = Installation(tmp_path / "data", **settings)
    ledger = Ledger()
    for last in (False, False, True):
        with installation.start() as service:
            assert len(processes_of(service)) == count
            settle(service, count, photo_bytes, ledger)
            if last:
                continue
            with working(service, count, photo_bytes, ledger) as clients:
                until_more(clients)
                if count > 1:
                    kill_one(service)
                    until_more(clients)
                time.sleep(random.uniform(0, 1))
                service.kill()
    assert installation.audit()[0].problem is None
