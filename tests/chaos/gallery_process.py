"""Processes that hold a gallery, ready to be killed, and a record of what they promised."""

import multiprocessing
import os
import threading
import zlib
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import LikenessError, PersonNotFound
from app.gallery.gallery import Gallery
from app.gallery.maintenance import MaintenanceThread, Pruning
from app.index.certified.rows import IndexShape
from app.index.factory import IndexFactory
from app.store.audit_verification import verify_audit
from app.store.backends import create_engine
from app.store.records import NewTemplate
from app.store.schema import migrate
from app.store.store import Store
from tests.writing import delete_person, enroll_person

DIMENSION = 64
# Templates are encoded, merged and compacted all the time.
SHAPE = IndexShape(encode_at=32, merge_at=3)
PERSONS, VECTORS = 10, 5  # of one client
# How many processes there are, one test after the other.
PROCESSES = [int(one) for one in os.environ.get("LIKENESS_CHAOS_PROCESSES", "1 2 4").split()]

# Children are forked from a server that has imported everything and started no thread.
START = multiprocessing.get_context("forkserver")
START.set_forkserver_preload(["tests.chaos.gallery_process"])


def vector_of(person: str, number: int) -> NDArray[np.float32]:
    """A direction of its own for each template that there could be."""
    generator = np.random.default_rng(zlib.crc32(f"{person}/{number}".encode()))
    vector = generator.standard_normal(DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def open_gallery(url: str, folder: Path) -> Gallery:
    """A gallery as a starting service opens it, its index kept in `folder`."""
    engine = create_engine(url)
    migrate(engine)
    return Gallery(Store(engine), IndexFactory(2, folder, shape=SHAPE), "es-chaos", DIMENSION)


def serve(connection: Connection, url: str, folder: Path, prunes: bool) -> None:
    """Do what comes over the connection until it ends: what the process runs."""
    gallery = open_gallery(url, folder)
    maintenance = MaintenanceThread(gallery, seconds=0.05)
    # About as long as a cycle of the crash loop: some processes follow the change log, others
    # find it pruned and build anew.
    if prunes:
        maintenance.add_task(
            Pruning(
                gallery.store.changes,
                gallery.store.idempotency,
                kept=timedelta(seconds=3),
                every_s=0.5,
            ).round
        )
    maintenance.start()
    connection.send(("ready", None))
    while True:
        action, person, number = connection.recv()
        try:
            connection.send(("done", act(gallery, action, person, number)))
        except LikenessError as error:
            connection.send(("refused", error.code))


def act(gallery: Gallery, action: str, person: str, number: int) -> Any:
    """One operation; `find` answers who is nearest to a template, and how near."""
    vector = vector_of(person, number)
    if action == "enroll":
        enroll_person(gallery, "default", person, None, [NewTemplate(vector, str(number))])
    elif action == "delete":
        delete_person(gallery, "default", person)
    elif action == "prune":
        Pruning(gallery.store.changes, gallery.store.idempotency, kept=timedelta(0)).round()
    else:
        (row,) = gallery.identify("default", vector[np.newaxis], 1).rows
        return (row[0].face.person_id, row[0].similarity) if row else (None, -1.0)
    return None


class GalleryProcess:
    """One process; `ask` from one thread at a time waits for its turn."""

    def __init__(self, url: str, folder: Path, *, prunes: bool = True) -> None:
        self._connection, theirs = START.Pipe()
        self._lock = threading.Lock()
        self.process = START.Process(target=serve, args=(theirs, url, folder, prunes), daemon=True)
        self.process.start()
        theirs.close()
        assert self._connection.recv()[0] == "ready"

    def ask(self, action: str, person: str, number: int) -> tuple[str, Any]:
        """The outcome. Raises EOFError or OSError when the process is dead."""
        with self._lock:
            self._connection.send((action, person, number))
            answer: tuple[str, Any] = self._connection.recv()
            return answer

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.join()
        with self._lock:  # a client that still reads finds the end first
            self._connection.close()


Held = frozenset[int]


@dataclass
class Ledger:
    """The states each person may be in: one, unless an operation had no answer."""

    allowed: dict[str, set[Held]] = field(default_factory=dict)
    acknowledged: int = 0

    def states(self, person: str) -> set[Held]:
        return self.allowed.get(person, {frozenset()})

    def begin(self, action: str, person: str, number: int) -> None:
        """The operation may happen from now on."""
        before = self.states(person)
        self.allowed[person] = before | {after(state, action, number) for state in before}

    def end(self, action: str, person: str, number: int, outcome: tuple[str, Any]) -> None:
        """It was acknowledged, or refused."""
        if outcome[0] == "done":
            self.acknowledged += 1
            self.allowed[person] = {after(state, action, number) for state in self.allowed[person]}
        elif outcome[1] == PersonNotFound.code:
            assert frozenset() in self.states(person), f"{person} was lost"
            self.allowed[person] = {frozenset()}


def after(state: Held, action: str, number: int) -> Held:
    return frozenset() if action == "delete" else state | {number}


class Client(threading.Thread):
    """Asks a process for one thing after another until the process is dead or `stopped` is set."""

    def __init__(self, name: str, process: GalleryProcess, ledger: Ledger, seed: int) -> None:
        super().__init__(name=name)
        self._process = process
        self._ledger = ledger
        self._random = np.random.default_rng(seed)
        self.stopped = threading.Event()
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stopped.is_set():
            person = f"{self.name}-{self._random.integers(PERSONS)}"
            number = int(self._random.integers(VECTORS))
            action = "delete" if self._random.random() < 0.3 else "enroll"
            self._ledger.begin(action, person, number)
            try:
                outcome = self._process.ask(action, person, number)
                self._ledger.end(action, person, number, outcome)
                if outcome[0] == "done":
                    self._check(person, number)
                else:
                    self.stopped.wait(0.02)
            except (EOFError, OSError):
                return
            except AssertionError as error:
                self.failures.append(str(error))
                return

    def _check(self, person: str, number: int) -> None:
        """What was just acknowledged is what a search says."""
        outcome, found = self._process.ask("find", person, number)
        if outcome == "done":
            there = found[0] == person and found[1] > 0.999
            (state,) = self._ledger.states(person) if self._sure(person) else (None,)
            if state is not None and there != (number in state):
                self.failures.append(f"{person}/{number}: {found}, but {sorted(state)}")

    def _sure(self, person: str) -> bool:
        return len(self._ledger.states(person)) == 1


def assert_kept(url: str, folder: Path, ledger: Ledger, clients: list[str]) -> int:
    """Every person is in an allowed state, the index says the same as the database, nobody else
    is there; afterwards the ledger knows which state it was. Gives the number of templates."""
    gallery = open_gallery(url, folder)
    gallery.prepare()
    gallery.run_maintenance()  # as maintenance does at once after a start
    found, absent = [], []
    for client in clients:
        for one in range(PERSONS):
            person = f"{client}-{one}"
            state = held(gallery, person)
            assert state in ledger.states(person), (person, state, ledger.states(person))
            ledger.allowed[person] = {state}
            for number in range(VECTORS):
                (found if number in state else absent).append((person, number))
    for probes, there in ((found, True), (absent, False)):
        vectors = np.array([vector_of(*one) for one in probes], np.float32).reshape(-1, DIMENSION)
        rows = gallery.identify("default", vectors, 1).rows
        for (person, number), row in zip(probes, rows, strict=True):
            hit = bool(row) and row[0].similarity > 0.999
            assert hit == there, (person, number, row)
            assert not hit or row[0].face.person_id == person
    check = gallery.check_index("default")
    assert check.clean, check
    assert check.templates == len(found)
    log = verify_audit(gallery.store.audit.everything())
    assert log.problem is None, log.problem
    gallery.close()
    return len(found)


def assert_erased(database: Path, ledger: Ledger, clients: list[str]) -> None:
    """After a start no file of an SQLite database has a byte of what was deleted or never kept; for
    a ledger that `assert_kept` has gone through."""
    everything = b"".join(path.read_bytes() for path in database.parent.glob(f"{database.name}*"))
    for person in (f"{client}-{one}" for client in clients for one in range(PERSONS)):
        (state,) = ledger.states(person)
        for number in range(VECTORS):
            there = vector_of(person, number).tobytes() in everything
            assert there == (number in state), (person, number)


def held(gallery: Gallery, person: str) -> Held:
    """The templates that the database has of a person."""
    try:
        _, vectors = gallery.store.embeddings.of_person("default", person)
    except PersonNotFound:
        return frozenset()
    known = {vector_of(person, number).tobytes(): number for number in range(VECTORS)}
    return frozenset(known[vector.tobytes()] for vector in vectors)
