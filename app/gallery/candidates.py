"""What a search of the gallery finds."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from app.errors import StoreUnavailable
from app.index.comparator import Comparator
from app.index.person_scores import PersonScore
from app.index.port import GallerySize, Hit, Ids, PersonSearch
from app.store.records import FaceName, FaceRecord
from app.types import FloatArray

# Persons that a search reads at most for each probe, to find others than those whose consent has
# ended.
MOST_NEAREST = 1_000
# How often a search is done if a face that it found was moved or deleted before it ended.
MAX_REPEATS = 6
# Rows that are searched in about the time that a photo takes.
MOST_AT_ONCE = 2_000_000
# How often a search by another score than that of the best template examines the rows.
COMBINED_COST = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """One person who may be the probe: the nearest stored face and the person's score.

    `margin` is the lead over the next person's similarity; None for the last of the gallery.
    """

    face: FaceName
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
    people are (see `app.index.likeness`; None where it is not known). `outdated`: a face that the
    index found has been moved or deleted meanwhile, so its person may be missing."""

    rows: list[list[Candidate]]
    searched: GallerySize
    likeness: float | None = None
    outdated: bool = False


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """Asks for the `top_k` nearest persons, by a `score`, of each of (n, d) unit vectors; only
    those `allowed`, keys in ascending order (None: all)."""

    probes: FloatArray
    top_k: int
    score: PersonScore = PersonScore.BEST
    allowed: Ids | None = None

    def is_quick(self, size: GallerySize) -> bool:
        """Whether it takes no longer in a gallery than the analysis of a photo, about."""
        each = 1 if self.score is PersonScore.BEST else COMBINED_COST
        return len(self.probes) * size.templates * each <= MOST_AT_ONCE

    def candidates(
        self,
        index: PersonSearch,
        faces_of: Callable[[Sequence[int]], tuple[Mapping[int, FaceName], Set[int]]],
        comparator: Comparator,
    ) -> tuple[list[list[Candidate]], bool]:
        """Those of each probe, best first, and whether the search is outdated. `faces_of` gives for
        template keys the faces to name, and the keys whose faces have been moved or deleted."""
        wanted = self.top_k + 1
        while True:
            rows = index.search_persons(self.probes, wanted, self.allowed, comparator, self.score)
            faces, gone = faces_of([hit.template_key for row in rows for hit in row])
            if wanted >= MOST_NEAREST or not may_lack_candidates(rows, faces, wanted, self.top_k):
                return [candidates_of(row, faces, self.top_k) for row in rows], bool(gone)
            wanted = min(4 * wanted, MOST_NEAREST)  # instead of persons whose consent has ended


def overtaken(collection: str) -> StoreUnavailable:
    """The error of a search that was outdated MAX_REPEATS times: its answer could name somebody
    else."""
    return StoreUnavailable(
        f"Faces of '{collection}' are moved or deleted faster than it can be searched. Send the "
        "call again."
    )


def candidates_of(
    hits: Sequence[Hit], faces: Mapping[int, FaceName], top_k: int
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


def may_lack_candidates(
    rows: Sequence[Sequence[Hit]], faces: Mapping[int, FaceName], wanted: int, top_k: int
) -> bool:
    """Whether a probe may have more candidates than were found: it has as many hits as were
    `wanted`, and without those that `faces` lacks at most `top_k` remain. One more is needed for
    the margin of the last."""
    return any(
        len(row) == wanted and sum(hit.template_key in faces for hit in row) <= top_k
        for row in rows
    )
