"""One process's gallery under test, here or in a process of its own, by what a client can ask."""

import gc
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from types import BuiltinFunctionType, CellType, FunctionType, MethodType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from app.encryption.keys import parse_keys
from app.encryption.ring import KeyRing
from app.gallery.gallery import Gallery
from app.gallery.index_check import IndexCheck
from app.index.certified.rows import IndexShape
from app.index.factory import IndexFactory
from app.store.backends import create_engine
from app.store.records import Erasure, NewTemplate, PersonTemplate
from app.store.store import Store
from tests.writing import delete_collection, delete_person, enroll_person

Vector = NDArray[np.float32]
D = 16
SPACE = "es-test"
# Shards of 6 rows, merged three at a time: what takes a million templates happens within ten.
SHAPE = IndexShape(encode_at=6, merge_at=3)
# Rows of the database as long as those of 512 dimensions: one per page. SQLite moves shorter ones
# from page to page, and copies stay in a page's unused part, which `secure_delete` does not reach.
FILLER = {"filler": "-" * 2_048}
KEY = b"one:" + b"8J2cQx0m3vL5tYw7Zr9aBd1FgHkMnPqSuVxE4iT6oWA="


def template(vector: Vector) -> NewTemplate:
    return NewTemplate(vector, sha256(vector.tobytes()).hexdigest(), FILLER)


class Host:
    """A gallery over a database file, with its snapshots beside it."""

    def __init__(self, database: Path, *, encrypted: bool) -> None:
        ring = KeyRing(parse_keys(KEY, "test")) if encrypted else None
        self._engine: Engine = create_engine(f"sqlite:///{database}")
        index_factory = IndexFactory(1, database.parent / "index", ring, SHAPE)
        self.gallery = Gallery(Store(self._engine, ring=ring), index_factory, SPACE, D)

    # --- what changes something --------------------------------------------------------------

    def create(self, collection: str) -> None:
        self.gallery.create_collection(collection, {})

    def enroll(self, collection: str, person: str, vectors: list[Vector]) -> list[str]:
        new = [template(vector) for vector in vectors]
        stored = enroll_person(self.gallery, collection, person, None, new)
        return [one.face.face_id for one in stored]

    def enrol_many(self, collection: str, people: dict[str, Vector]) -> list[str]:
        rows = [PersonTemplate(person, None, template(vector)) for person, vector in people.items()]
        return [str(face) for face in self.gallery.enroll_many(collection, rows)]

    def delete_person(self, collection: str, person: str) -> bool:
        return delete_person(self.gallery, collection, person).erased is Erasure.DONE

    def delete_face(self, collection: str, face: str) -> bool:
        return self.gallery.delete_face(collection, face).erased is Erasure.DONE

    def delete_collection(self, collection: str) -> bool:
        return delete_collection(self.gallery, collection).erased is Erasure.DONE

    def move_face(self, collection: str, face: str, person: str) -> None:
        self.gallery.move_face(collection, face, person)

    def merge(self, collection: str, source: str, target: str) -> None:
        self.gallery.merge_persons(collection, source, target)

    # --- what changes nothing that is seen ---------------------------------------------------

    def search(self, collection: str, probes: Vector, top_k: int) -> list[list[tuple[str, float]]]:
        found = self.gallery.identify(collection, probes, top_k)
        return [[(one.face.person_id, one.similarity) for one in row] for row in found.rows]

    def run_maintenance(self) -> None:
        self.gallery.run_maintenance()

    def save(self) -> None:
        for key in list(self.gallery._replicas):
            # Its collection may be deleted at the same time.
            if (replica := self.gallery._replicas.get(key)) is not None:
                replica.save()

    def check_index(self) -> list[IndexCheck]:
        names = [record.name for record in self.gallery.store.collections.every()]
        return [self.gallery.check_index(name) for name in names]

    def erased(self) -> bool:
        """Whether the database's files hold nothing that was deleted."""
        return self.gallery.store.database.eraser.pending_s() == 0

    def holding(self, patterns: list[bytes]) -> list[int]:
        """Which of the byte patterns lie in an array that can be reached from the index."""
        content = b"|".join(arrays_of([self.gallery._replicas, self.gallery._engine]))
        return [number for number, pattern in enumerate(patterns) if pattern in content]

    # --- the end -----------------------------------------------------------------------------

    def close(self) -> None:
        self.gallery.close()

    def abandon(self) -> None:
        """Leave everything as a killed process does: nothing is kept, locks are free."""
        indexes = self.gallery._indexes
        indexes._catalog.release()
        indexes.replicas._open.clear()
        self.gallery._engine.close()
        self._engine.dispose()


def arrays_of(roots: Iterable[object]) -> Iterator[bytes]:
    """The bytes of every array that can be reached, with all of the memory that it is a view of.
    The database and its drivers are not looked into."""
    seen, waiting = set[int](), list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (type, str, bytes, int, float, BuiltinFunctionType)):
            continue
        seen.add(id(one))
        if isinstance(one, np.ndarray):
            if one.base is not None and isinstance(one.base, np.ndarray):
                waiting.append(one.base)
            elif one.dtype != object:
                yield one.tobytes()
        elif isinstance(one, (FunctionType, MethodType)):
            waiting += [*(getattr(one, "__closure__", None) or ()), getattr(one, "__self__", None)]
        elif _is_looked_into(one):
            waiting += gc.get_referents(one)


def _is_looked_into(one: object) -> bool:
    module = type(one).__module__
    ours = module.startswith(("app.gallery.", "app.index.", "app.store.", "app.encryption."))
    ours = ours and not module.startswith("app.store.sql")
    containers = (dict, list, tuple, set, frozenset, CellType, Executor)
    return (ours and not isinstance(one, Store)) or isinstance(one, containers)


class RemoteHost:
    """A `Host` in a process of its own."""

    def __init__(self, process: "HostProcess", database: Path, *, encrypted: bool) -> None:
        self._process = process
        process.ask("open", database, encrypted)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self._process.ask(name, *args)

    def abandon(self) -> None:
        """Kill the process."""
        self._process.kill()


class HostProcess:
    """A process that holds one host at a time; another one is started where it was killed."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def _start(self) -> None:
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, name: str, *args: Any) -> Any:
        """What the host answers; raises what it raised."""
        self._pipe.send((name, args))
        assert self._pipe.poll(60), "the process does not answer"
        fine, answer = self._pipe.recv()
        if not fine:
            raise answer
        return answer

    def kill(self) -> None:
        """End it as a crash does, and start the next."""
        self.stop()
        self._start()

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    host: Any = None
    while True:
        try:
            name, args = pipe.recv()
        except EOFError:
            return
        try:
            if name == "open":
                host, answer = Host(args[0], encrypted=args[1]), None
            else:
                answer = getattr(host, name)(*args)
            pipe.send((True, answer))
        except Exception as error:  # noqa: BLE001 (the other side looks at it)
            pipe.send((False, error))
