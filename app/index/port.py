"""What an index is given and gives: templates as arrays, and the persons nearest to a probe."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.types import FloatArray

Ids = NDArray[np.int64]
PRECISION = "float32"  # of the similarities that are answered


@dataclass(frozen=True, slots=True)
class GallerySize:
    """How much there is: people, and templates over all of them.

    `spread`: effective numbers of templates (`app.index.effective`), and how many people have
    each; where it is empty, everybody has an equal share of the templates, all different.
    """

    persons: int
    templates: int
    spread: tuple[tuple[float, int], ...] = ()

    @classmethod
    def of_person(cls, templates: int, effective: float) -> "GallerySize":
        """One person with these templates."""
        return cls(1, templates, ((effective, 1),))

    @property
    def effective(self) -> tuple[tuple[float, int], ...]:
        """`spread`, also where it is not given."""
        if self.spread or not self.persons:
            return self.spread
        return ((max(self.templates, self.persons) / self.persons, self.persons),)

    def one_more(self, *, person: bool) -> "GallerySize":
        """With one more template, of another `person` or of one who is there. It counts as much as
        a person's only template: it can hardly add more."""
        spread = dict(self.effective)
        spread[1.0] = spread.get(1.0, 0) + 1
        return GallerySize(self.persons + person, self.templates + 1, tuple(spread.items()))


@dataclass(frozen=True, slots=True)
class Templates:
    """Templates as parallel arrays: their keys (n,), their persons' keys (n,), vectors (n, d)."""

    keys: Ids
    person_keys: Ids
    vectors: FloatArray


@dataclass(frozen=True, slots=True)
class Hit:
    """The best template of one person for one probe; `similarity` is their comparison score."""

    person_key: int
    template_key: int
    similarity: float


class IndexedCollection(Protocol):
    """What an index needs to know of the collection that it holds."""

    @property
    def key(self) -> int: ...
    @property
    def embedding_space(self) -> str: ...
    @property
    def dimension(self) -> int: ...
