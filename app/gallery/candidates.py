"""What a search of the gallery finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.index.port import GallerySize, Hit
from app.store.records import FaceRecord
from app.types import FloatArray


@dataclass(frozen=True, slots=True)
class Candidate:
    """One person who may be the probe: the nearest stored face and the person's score.

    `margin` is the lead over the next person's similarity; None for the last of the gallery.
    """

    face: FaceRecord
    similarity: float
    margin: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A probe against one claimed person: the nearest stored face, the person's score, how much was
    compared, how degraded that face looks (None where the comparator has no direction), and its
    embedding (d,)."""

    face: FaceRecord
    similarity: float
    compared: GallerySize
    degradation: float | None
    embedding: FloatArray = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """For each probe its nearest people, best first, how much was searched, and how alike those
    people are (see `app.index.likeness`; None where it is not known)."""

    rows: list[list[Candidate]]
    searched: GallerySize
    likeness: float | None = None


def candidates_of(
    hits: Sequence[Hit], faces: Mapping[int, FaceRecord], top_k: int
) -> list[Candidate]:
    """The first `top_k` of one probe's hits whose faces the database still has, by template key."""
    known = [hit for hit in hits if hit.template_key in faces]
    following: list[Hit | None] = [*known[1:], None]
    return [
        Candidate(
            faces[hit.template_key],
            hit.similarity,
            None if after is None else hit.similarity - after.similarity,
        )
        for hit, after in zip(known, following, strict=False)
    ][:top_k]


def are_short(
    rows: Sequence[Sequence[Hit]], faces: Mapping[int, FaceRecord], wanted: int, top_k: int
) -> bool:
    """Whether a probe has fewer candidates than there may be: of its `wanted` hits so many are left
    out that neither `top_k` nor the next one, to which the last has a margin, are left."""
    return any(
        len(row) == wanted and sum(hit.template_key in faces for hit in row) <= top_k
        for row in rows
    )
