"""The cells that are counted separately: each group of people in each stratum of degraded
photos."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from app.errors import UnreadableImage
from app.imaging import ImageLimits, decode_image
from app.lab.attestation.document import AttestationError
from app.lab.attestation.requirement import Counted
from app.lab.attestation.searching import BestScores, Mask, false_negatives, false_positives
from app.types import Image

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
    `threshold` of that gallery."""

    group: str
    stratum: str
    sides: str
    gallery_persons: int
    fpir: Counted
    fnir: Counted
    threshold: float


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
    for group, members in groups_of(attributes, _everyone(searched)):
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
        )


def _everyone(searched: Searched) -> set[str]:
    return {
        *searched.stranger_names, *searched.mate_names, *searched.lost[0], *searched.lost[1]
    }  # fmt: skip


def groups_of(
    attributes: Attributes, everyone: set[str]
) -> Iterator[tuple[str, frozenset[str] | None]]:
    """Names of groups with their people; None for everybody. Small groups are one, without a name.

    Raises AttestationError for an attribute with too many groups, such as an id.
    """
    yield EVERYBODY, None
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
            yield f"{attribute}={group}", members
        small = frozenset(name for name, of in known.items() if of not in large)
        if small:
            yield f"{attribute}: {SMALL}", small


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
