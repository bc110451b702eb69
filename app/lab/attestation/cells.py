"""The best scores of probes in a gallery that is read part by part, and the errors counted in them:
in each cell, a group of people in a stratum of degraded photos."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from app.errors import UnreadableImage
from app.imaging import ImageLimits, decode_image
from app.index.comparator import Comparator
from app.index.person_scores import PersonScore
from app.lab.attestation.document import AttestationError
from app.lab.attestation.requirement import Counted
from app.types import FloatArray, Image

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK_ROWS = 512
BLOCK_PERSONS = 4_096
LOWEST = -2.0  # below every score
NOBODY = -1


@dataclass(frozen=True, slots=True)
class Faces:
    """Embeddings (n, d), whose they are (n,), and which template or photo each is (n,)."""

    vectors: FloatArray
    persons: Ids
    keys: Ids


class BestScores:
    """For each probe the highest score of its own person, of any other person, and who that is.

    A probe is not compared with itself (the same key), so that templates of a gallery can be the
    probes that search it.
    """

    def __init__(self, probes: Faces, comparator: Comparator) -> None:
        self.probes = probes
        self._comparator = comparator
        count = len(probes.keys)
        self.own = np.full(count, LOWEST)
        self.other = np.full(count, LOWEST)
        self.other_person: Ids = np.full(count, NOBODY)

    def add(self, gallery: Faces) -> None:
        """Compare all probes with more of the gallery."""
        if not len(gallery.keys):
            return
        for start in range(0, len(self.own), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            persons, keys = self.probes.persons[rows, None], self.probes.keys[rows, None]
            scores = self._comparator.scores(self.probes.vectors[rows], gallery.vectors)
            mine = persons == gallery.persons
            own = np.where(mine & (keys != gallery.keys), scores, LOWEST).max(axis=1)
            self.own[rows] = np.maximum(self.own[rows], own)
            others = np.where(mine, LOWEST, scores)
            best = others.argmax(axis=1)
            highest = others[np.arange(len(best)), best]
            higher = highest > self.other[rows]
            self.other_person[rows] = np.where(
                higher, gallery.persons[best], self.other_person[rows]
            )
            self.other[rows] = np.where(higher, highest, self.other[rows])

    def add_persons(self, gallery: Faces, score: PersonScore) -> None:
        """Compare all probes with a whole gallery by a `score` of persons with several templates,
        which needs all templates of a person at once."""
        order = np.argsort(gallery.persons, kind="stable")
        vectors, keys = gallery.vectors[order], gallery.keys[order]
        persons, starts = np.unique(gallery.persons[order], return_index=True)
        ends = np.append(starts[1:], len(order))
        for first in range(0, len(persons), BLOCK_PERSONS):
            some = slice(first, first + BLOCK_PERSONS)
            place = slice(starts[some][0], ends[some][-1])
            self._compare_others(vectors[place], persons[some], starts[some] - place.start, score)
        for n in np.flatnonzero(np.isin(self.probes.persons, persons)):
            own = np.searchsorted(persons, self.probes.persons[n])
            mine = np.arange(starts[own], ends[own])
            mine = mine[keys[mine] != self.probes.keys[n]]
            if len(mine):
                scores = self._comparator.scores(self.probes.vectors[n : n + 1], vectors[mine])[0]
                self.own[n] = score.of_templates(scores, vectors[mine])

    def _compare_others(
        self, vectors: FloatArray, persons: Ids, starts: Ids, score: PersonScore
    ) -> None:
        """With persons whose templates begin at these rows, each probe's own left out."""
        held = np.diff(starts, append=len(vectors))
        length = np.linalg.norm(np.add.reduceat(vectors, starts, dtype=np.float64), axis=1)
        for start in range(0, len(self.own), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            scores = self._comparator.scores(self.probes.vectors[rows], vectors)
            found = score.of(
                np.maximum.reduceat(scores, starts, axis=1),
                np.add.reduceat(scores, starts, axis=1),
                held,
                length,
            )
            found[self.probes.persons[rows, None] == persons] = LOWEST
            best = found.argmax(axis=1)
            highest = found[np.arange(len(best)), best]
            higher = highest > self.other[rows]
            self.other_person[rows] = np.where(higher, persons[best], self.other_person[rows])
            self.other[rows] = np.where(higher, highest, self.other[rows])

    def of(self, chosen: Mask) -> "BestScores":
        """Some of the probes with what was found for them."""
        probes = self.probes
        some = BestScores(
            Faces(probes.vectors[chosen], probes.persons[chosen], probes.keys[chosen]),
            self._comparator,
        )
        some.own, some.other = self.own[chosen], self.other[chosen]
        some.other_person = self.other_person[chosen]
        return some


def false_positives(
    found: BestScores, threshold: float, chosen: Mask, *, both_ways: bool, rejected: int = 0
) -> Counted:
    """Searches in which someone else reaches the threshold, among the `chosen` probes, each of
    another person; `rejected` more probes had no usable face and so found nobody.

    `both_ways`: the probes are the gallery's own people. A pair of people who match is then an
    error of two searches, so two searches count as one at most; people who match several others
    count for less still (design effect of clusters, Kish, 1965).
    """
    wrong = (found.other >= threshold) & chosen
    searches = int(chosen.sum()) + rejected
    effect = 1.0
    if both_ways:
        links = found.probes.persons[wrong], found.other_person[wrong]
        effect = max(2.0, _design_effect(*links))
    return Counted(int(wrong.sum()), searches, searches / effect)


def false_negatives(
    found: BestScores, threshold: float, chosen: Mask, rejected: int = 0
) -> Counted:
    """Searches whose own person is not first or not at the threshold; a probe without a usable
    face is missed."""
    missed = ((found.own < threshold) | (found.own < found.other)) & chosen
    searches = int(chosen.sum()) + rejected
    return Counted(int(missed.sum()) + rejected, searches, float(searches))


def _design_effect(persons: Ids, others: Ids) -> float:
    """The mean number of errors in the cluster of each error; clusters are linked by matches."""
    if not len(persons):
        return 1.0
    _, numbers = np.unique(np.concatenate([persons, others]), return_inverse=True)
    one, other = numbers[: len(persons)], numbers[len(persons) :]
    size = int(numbers.max()) + 1
    graph: Any = coo_array((np.ones(len(one)), (one, other)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    sizes = np.bincount(label[one]).astype(float)
    return float((sizes**2).sum() / sizes.sum())


EVERYBODY = "everybody"
UNCHANGED = "unchanged"
# A group of fewer is not named: its rate would be about people who could be identified.
MIN_GROUP = 5
SMALL = f"groups of fewer than {MIN_GROUP} people"
MAX_GROUPS = 200

# Group of each person, by attribute.
Attributes = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One group in one stratum: `sides` says which photos were degraded (none, probe or both),
    `gallery_persons` how many people were enrolled in the gallery that was searched, at the
    `threshold` of that gallery. `attribute`: which one the group is of; None for everybody."""

    group: str
    stratum: str
    sides: str
    gallery_persons: int
    fpir: Counted
    fnir: Counted
    threshold: float
    attribute: str | None = None

    @property
    def has_whole_gallery(self) -> bool:
        """Whether everybody who was to be enrolled was: of degraded photos the service refuses
        some, which leaves nothing unmeasured."""
        return self.sides != "both"


@dataclass(frozen=True, slots=True)
class Searched:
    """Searches of one stratum by the people who made them: `strangers` and `mates` are the best
    scores of their probes, `stranger_names` and `mate_names` whose they are. `lost` names those
    whose photo had no usable face: strangers, then mates. `likeness`: of the gallery's people, if
    there are enough of them."""

    stratum: str
    sides: str
    gallery_persons: int
    strangers: BestScores
    stranger_names: Sequence[str]
    mates: BestScores
    mate_names: Sequence[str]
    lost: tuple[Sequence[str], Sequence[str]] = ((), ())
    both_ways: bool = False
    likeness: float | None = None


def count_cells(searched: Searched, threshold: float, attributes: Attributes) -> Iterator[Cell]:
    """The cells of a stratum: everybody, then each group of each attribute."""
    for group, attribute, members in groups_of(attributes, _everyone(searched)):
        strangers, mates = (
            _mask(names, members) for names in (searched.stranger_names, searched.mate_names)
        )
        lost = [int(_mask(names, members).sum()) for names in searched.lost]
        yield Cell(
            group,
            searched.stratum,
            searched.sides,
            searched.gallery_persons,
            false_positives(
                searched.strangers,
                threshold,
                strangers,
                both_ways=searched.both_ways,
                rejected=lost[0],
            ),
            false_negatives(searched.mates, threshold, mates, lost[1]),
            threshold,
            attribute,
        )


def _everyone(searched: Searched) -> set[str]:
    return {
        *searched.stranger_names, *searched.mate_names, *searched.lost[0], *searched.lost[1]
    }  # fmt: skip


def without_group(searched: Searched, attributes: Attributes) -> dict[str, int]:
    """How many people who were measured have no group, by attribute: only everybody has them."""
    everyone = _everyone(searched)
    return {name: len(everyone - group_of.keys()) for name, group_of in attributes.items()}


def groups_of(
    attributes: Attributes, everyone: set[str]
) -> Iterator[tuple[str, str | None, frozenset[str] | None]]:
    """Names of groups, their attributes and their people; None for everybody. Small groups are one,
    without a name; an attribute that matches nobody has none.

    Raises AttestationError for an attribute with too many groups, such as an id.
    """
    yield EVERYBODY, None, None
    for attribute, group_of in attributes.items():
        known = {name: group for name, group in group_of.items() if name in everyone}
        sizes = Counter(known.values())
        if len(sizes) > MAX_GROUPS:
            raise AttestationError(
                f"The attribute {attribute} has {len(sizes)} groups; at most {MAX_GROUPS} are "
                "reported. Remove the column, or name coarser groups."
            )
        large = sorted(group for group, size in sizes.items() if size >= MIN_GROUP)
        for group in large:
            members = frozenset(name for name, of in known.items() if of == group)
            yield f"{attribute}={group}", attribute, members
        small = frozenset(name for name, of in known.items() if of not in large)
        if small:
            yield f"{attribute}: {SMALL}", attribute, small


def _mask(names: Sequence[str], members: frozenset[str] | None) -> Mask:
    return np.array([members is None or name in members for name in names], dtype=np.bool_)


Change = Callable[[bytes], bytes]

_LIMITS = ImageLimits(max_bytes=64 * 1024 * 1024, max_pixels=100_000_000)


def _blur(image: Image) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 4.0), np.uint8)


def _darken(image: Image) -> Image:
    return (image * 0.1).astype(np.uint8)


def _turn(image: Image) -> Image:
    return np.ascontiguousarray(image[::-1, ::-1])


def _png(made: Callable[[Image], Image]) -> Change:
    def change(photo: bytes) -> bytes:
        # The fastest level: these bytes live for a moment only.
        return _encoded(made(decode_image(photo, _LIMITS)), ".png", cv2.IMWRITE_PNG_COMPRESSION, 1)

    return change


def _jpeg_10(photo: bytes) -> bytes:
    return _encoded(decode_image(photo, _LIMITS), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 10)


def _encoded(image: Image, suffix: str, option: int, value: int) -> bytes:
    done, encoded = cv2.imencode(suffix, image, [option, value])
    if not done:
        raise UnreadableImage("The changed photo cannot be encoded.")
    return encoded.tobytes()


# By name; lengths are in pixels of the photo. Each takes and gives an encoded photo, and raises the
# ImageError family.
STRATA: Mapping[str, Change] = {
    "blur sigma 4 px": _png(_blur),
    "brightness x 0.1": _png(_darken),
    "JPEG quality 10": _jpeg_10,
    "turned 180 degrees": _png(_turn),
}
