"""What can be done to a gallery, and what the truth is afterwards."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.gallery.model.truth import Gone, Truth, unit

PEOPLE = [f"p{number}" for number in range(12)]
COLLECTIONS = ["default", "staff", "guests"]


@dataclass
class Operation:
    """One call of a host, made ready. `touches` names what it reads or changes, as (collection,
    person), the person "*" for a whole collection: two that touch the same are not run at once.
    `apply` changes the truth by what the call answered."""

    kind: str
    run: Callable[[], Any]
    apply: Callable[[Any], None] = lambda _: None
    touches: set[tuple[str, str]] = field(default_factory=set)
    brings: list[bytes] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        return bool(self.touches)

    def clashes(self, other: "Operation") -> bool:
        return any(
            mine == theirs and (who == whom or "*" in (who, whom))
            for mine, who in self.touches
            for theirs, whom in other.touches
        )


class Planner:
    """Makes operations of one host, with targets drawn from the truth."""

    def __init__(
        self, host: Any, name: str, truth: Truth, awaited: set[str], seed: Sequence[int]
    ) -> None:
        """`awaited` are the galleries that have to follow a deletion."""
        self._host, self._name = host, name
        self._truth = truth
        self._awaited = awaited
        self._generator = np.random.default_rng(seed)
        self._collection = self._one_of(sorted(truth.collections))

    def plan(self, kind: str) -> Operation | None:
        """None where there is nothing to do it to."""
        made: Operation | None = getattr(self, kind)()
        return made

    def _one_of(self, things: Iterable[str]) -> str:
        choice = list(things)
        return choice[int(self._generator.integers(len(choice)))]

    def _here(self, *people: str) -> set[tuple[str, str]]:
        return {(self._collection, person) for person in people}

    def _forget(self, where: str, faces: list[str], *, done: bool) -> None:
        """Where the answer says that all is erased, this gallery has nothing of it left."""
        awaited = self._awaited - {self._name} if done else self._awaited
        self._truth.forget(where, faces, awaited, erased=done)

    # --- what changes something --------------------------------------------------------------

    def enroll(self) -> Operation:
        person, where = self._one_of(PEOPLE), self._collection
        vectors = [unit(self._generator) for _ in range(int(self._generator.integers(1, 4)))]

        def apply(faces: list[str]) -> None:
            for face, vector in zip(faces, vectors, strict=True):
                self._truth.collections[where][face] = (person, vector)

        return Operation(
            "enroll", lambda: self._host.enroll(where, person, vectors), apply,
            self._here(person), [vector.tobytes() for vector in vectors],
        )  # fmt: skip

    def enrol_many(self) -> Operation:
        where = self._collection
        some = self._generator.permutation(PEOPLE)[: int(self._generator.integers(3, 9))]
        people = {str(person): unit(self._generator) for person in some}

        def apply(faces: list[str]) -> None:
            for face, (person, vector) in zip(faces, people.items(), strict=True):
                self._truth.collections[where][face] = (person, vector)

        return Operation(
            "enrol_many", lambda: self._host.enrol_many(where, people), apply,
            self._here(*people), [vector.tobytes() for vector in people.values()],
        )  # fmt: skip

    def delete_person(self) -> Operation | None:
        where = self._collection
        if not (people := self._truth.people(where)):
            return None
        person = self._one_of(people)
        faces = self._truth.faces_of(where, person)
        return Operation(
            "delete_person", lambda: self._host.delete_person(where, person),
            lambda done: self._forget(where, faces, done=done), self._here(person),
        )  # fmt: skip

    def delete_face(self) -> Operation | None:
        where = self._collection
        if not self._truth.collections[where]:
            return None
        face = self._one_of(self._truth.collections[where])
        person, _ = self._truth.collections[where][face]
        return Operation(
            "delete_face", lambda: self._host.delete_face(where, face),
            lambda done: self._forget(where, [face], done=done), self._here(person),
        )  # fmt: skip

    def move_face(self) -> Operation | None:
        where = self._collection
        if not self._truth.collections[where]:
            return None
        face, target = self._one_of(self._truth.collections[where]), self._one_of(PEOPLE)
        source, vector = self._truth.collections[where][face]

        def apply(_: object) -> None:
            self._truth.collections[where][face] = (target, vector)
            self._truth.forget_row(self._awaited)

        return Operation(
            "move_face", lambda: self._host.move_face(where, face, target), apply,
            self._here(source, target),
        )  # fmt: skip

    def merge(self) -> Operation | None:
        where = self._collection
        if len(people := self._truth.people(where)) < 2:
            return None
        source, target = (str(one) for one in self._generator.permutation(people)[:2])

        def apply(_: object) -> None:
            faces = self._truth.collections[where]
            for face in self._truth.faces_of(where, source):
                faces[face] = (target, faces[face][1])
                self._truth.forget_row(self._awaited)

        return Operation(
            "merge", lambda: self._host.merge(where, source, target), apply,
            self._here(source, target),
        )  # fmt: skip

    def create_collection(self) -> Operation | None:
        missing = [one for one in COLLECTIONS if one not in self._truth.collections]
        if not missing:
            return None
        where = self._one_of(missing)
        return Operation(
            "create_collection", lambda: self._host.create(where),
            lambda _: self._truth.collections.update({where: {}}), {(where, "*")},
        )  # fmt: skip

    def delete_collection(self) -> Operation | None:
        others = [one for one in self._truth.collections if one != "default"]
        if not others:
            return None
        where = self._one_of(sorted(others))

        def apply(done: bool) -> None:
            self._forget(where, list(self._truth.collections[where]), done=done)
            del self._truth.collections[where]

        return Operation(
            "delete_collection", lambda: self._host.delete_collection(where), apply, {(where, "*")}
        )

    # --- what changes nothing that is seen ---------------------------------------------------

    def search(self) -> Operation:
        where = self._collection
        probes = self._truth.probes(where, self._generator)
        return Operation("search", lambda: self._host.search(where, probes, 3))

    def save(self) -> Operation:
        return Operation("save", self._host.save)

    def run_maintenance(self) -> Operation:
        before: list[Gone] = list(self._truth.gone)

        def apply(_: object) -> None:
            for one in before:
                one.awaited.discard(self._name)

        return Operation("run_maintenance", self._host.run_maintenance, apply)


CHANGES = [
    "enroll", "enrol_many", "delete_person", "delete_face", "move_face", "merge",
    "create_collection", "delete_collection",
]  # fmt: skip
NEUTRAL = ["search", "save", "run_maintenance"]
