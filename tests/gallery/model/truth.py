"""What the gallery should hold, in dictionaries."""

from dataclasses import dataclass, field

import numpy as np

from tests.gallery.model.host import Vector

Faces = dict[str, tuple[str, Vector]]  # by face id: the person, and the vector


@dataclass
class Gone:
    """A vector that was deleted. It is in no array of a gallery that is not `awaited`, and in no
    file once nobody is or the deletion was answered as `erased`."""

    pattern: bytes | None  # None for one that was moved: its row is gone, and a new one is there
    awaited: set[str]
    erased: bool = False

    @property
    def in_no_file(self) -> bool:
        return self.erased or not self.awaited


@dataclass
class Truth:
    """Collections with their faces, and all vectors that were deleted."""

    collections: dict[str, Faces] = field(default_factory=lambda: {"default": {}})
    gone: list[Gone] = field(default_factory=list)

    def people(self, collection: str) -> list[str]:
        return sorted({person for person, _ in self.collections[collection].values()})

    def faces_of(self, collection: str, person: str) -> list[str]:
        faces = self.collections[collection]
        return [face for face, (whose, _) in faces.items() if whose == person]

    def forget(self, collection: str, faces: list[str], awaited: set[str], *, erased: bool) -> None:
        """Faces were deleted."""
        for face in faces:
            _, vector = self.collections[collection].pop(face)
            self.gone.append(Gone(vector.tobytes(), set(awaited), erased))

    def forget_row(self, awaited: set[str]) -> None:
        """A face was moved."""
        self.gone.append(Gone(None, set(awaited)))

    def nearest(self, collection: str, probe: Vector, top_k: int) -> list[tuple[str, float]]:
        """The nearest persons, by looking at everything."""
        best: dict[str, float] = {}
        for person, vector in self.collections[collection].values():
            best[person] = max(float(vector @ probe), best.get(person, -2.0))
        return sorted(best.items(), key=lambda one: -one[1])[:top_k]

    def probes(self, collection: str, generator: np.random.Generator) -> Vector:
        """Some vectors that are held, some that were deleted, and a stranger's."""
        held = [vector for _, vector in self.collections[collection].values()][-3:]
        gone = [np.frombuffer(one.pattern, np.float32) for one in self.gone[-3:] if one.pattern]
        return np.array([*held, *gone, unit(generator)])


def unit(generator: np.random.Generator) -> Vector:
    """A random unit vector (16,)."""
    vector = generator.standard_normal(16)
    result: Vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return result
