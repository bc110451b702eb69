"""How many templates each person has, how many different ones they amount to, and the length of
their sum."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.index.certified.persons import PersonSet
from app.index.certified.rows import Rows
from app.index.person_scores import Floats, compared, effective_numbers, ratios_of
from app.index.port import GallerySize, Ids
from app.types import FloatArray

FOLD_AT = 65_536
SINCE_BYTES = 200  # of an entry in the dictionary
# Effective numbers are kept in steps of 2 %: the same number, whatever the order of a sum.
STEPS = 50
MOST_STEPS = STEPS * 22  # of more than three thousand million templates
ROWS_AT_ONCE = 8_192
# Persons with the most diverse templates, who are listed, and how many may be before they are
# chosen again.
WIDEST = 32
MOST_WIDE = 128

Steps = NDArray[np.uint16]
# Of persons (n,): how many templates they have, the steps of their effective number, the length of
# their sum.
Entries = tuple[Ids, Steps, FloatArray]


@dataclass(frozen=True, slots=True)
class TemplateMeasures:
    """Of the templates of persons (n,): their effective number, and the length of their sum, a
    float64 rounded to float32."""

    effective: Floats
    length: FloatArray


class PersonCounts:
    """Templates by person: sorted arrays for what was there at first, a dictionary of those who
    changed since, so that a million people take 22 MB and not 200."""

    def __init__(self) -> None:
        self._persons: Ids = np.empty(0, np.int64)
        self._held: Ids = np.empty(0, np.int64)
        self._steps: Steps = np.empty(0, np.uint16)
        self._lengths: FloatArray = np.empty(0, np.float32)
        self._since: dict[int, tuple[int, int, float]] = {}
        self._spread: NDArray[np.int64] = np.zeros(MOST_STEPS, np.int64)
        self._templates = 0
        # Of everybody but the wide, no ratio (see `ratios_of`) is larger.
        self._ratio = 1.0
        self._wide: set[int] = set()
        self.size = GallerySize(0, 0)

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, about."""
        arrays = (self._persons, self._held, self._steps, self._lengths, self._spread)
        return sum(array.nbytes for array in arrays) + SINCE_BYTES * len(self._since)

    @classmethod
    def of(cls, parts: list[Rows]) -> "PersonCounts":
        """The counts of the remaining rows."""
        made = cls()
        owners = np.concatenate([part.persons[part.remaining()] for part in parts])
        persons, held = np.unique(owners, return_counts=True)
        made.restart(persons, held, _measured(parts, persons, held))
        return made

    def change(self, parts: list[Rows], persons: Ids, sign: int) -> None:
        """Templates of these persons, one entry each, came (1) or went (-1); `parts` is what there
        is now."""
        changed, number = np.unique(persons, return_counts=True)
        held = self.held(changed) + sign * number
        self.put(changed, held, _measured(parts, changed, held))

    def restart(self, persons: Ids, held: Ids, measured: TemplateMeasures) -> None:
        """Start over with these persons (n,), in ascending order of their keys, as in `put`; each
        has templates."""
        self._persons, self._held, self._steps = persons, held, _steps_of(measured.effective)
        self._lengths = measured.length
        self._since.clear()
        self._choose_wide()
        self._spread = np.bincount(self._steps, minlength=MOST_STEPS).astype(np.int64)
        self._templates = int(held.sum())
        self.size = self._size_of(self._spread, self._templates)

    def put(self, persons: Ids, held: Ids, measured: TemplateMeasures) -> None:
        """Persons (n,), in ascending order of their keys, have so many templates now, which are
        like this."""
        before, steps_before, _ = self._of(persons)
        steps = _steps_of(measured.effective)
        np.subtract.at(self._spread, steps_before[before > 0], 1)
        np.add.at(self._spread, steps[held > 0], 1)
        self._templates += int(held.sum() - before.sum())
        values = zip(held.tolist(), steps.tolist(), measured.length.tolist(), strict=True)
        self._since.update(zip(persons.tolist(), values, strict=True))
        wide = ratios_of(held, measured.length) > self._ratio
        self._wide.difference_update(persons[~wide].tolist())
        self._wide.update(persons[wide].tolist())
        self.size = self._size_of(self._spread, self._templates)
        if len(self._since) > FOLD_AT:
            self._fold()
        if len(self._wide) > MOST_WIDE:
            self._choose_wide()

    def held(self, persons: Ids) -> Ids:
        """Templates of each of these persons, in ascending order of their keys."""
        return self._of(persons)[0]

    def effective(self, persons: Ids) -> Floats:
        """The effective numbers of their templates; 0 of those who have none."""
        held, steps, _ = self._of(persons)
        return np.where(held > 0, np.exp(steps / STEPS), 0.0)

    def lengths(self, persons: Ids) -> tuple[Ids, FloatArray]:
        """How many templates each of these persons has, in ascending order of their keys, and the
        length of their sum; 0 of those who have none."""
        held, _, lengths = self._of(persons)
        return held, lengths

    def widest(self) -> tuple[Ids, float]:
        """Some persons whose templates differ the most, in ascending order of keys, and the
        largest ratio (see `ratios_of`) that any other person can have."""
        return np.array(sorted(self._wide), np.int64), self._ratio

    def among(self, persons: Ids) -> GallerySize:
        """How much there is of these persons, in ascending order of their keys."""
        held, steps, _ = self._of(persons)
        return self._size_of(np.bincount(steps[held > 0], minlength=1), int(held.sum()))

    @staticmethod
    def _size_of(spread: NDArray[np.int64], templates: int) -> GallerySize:
        used = np.flatnonzero(spread)
        effective = np.exp(used / STEPS).tolist()
        people = spread[used].tolist()
        return GallerySize(sum(people), templates, tuple(zip(effective, people, strict=True)))

    def _fold(self) -> None:
        """Put what changed into the arrays."""
        if not self._since:
            return
        changed = np.fromiter(self._since, np.int64, len(self._since))
        persons = np.union1d(self._persons, changed)
        held, steps, lengths = self._of(persons)
        some = held > 0
        self._persons, self._held, self._steps = persons[some], held[some], steps[some]
        self._lengths = lengths[some]
        self._since.clear()

    def _choose_wide(self) -> None:
        """List the persons with the largest ratios again."""
        self._fold()
        ratios = ratios_of(self._held, self._lengths)
        self._ratio = 1.0
        if len(ratios) > WIDEST:
            # Rounded up, as a ratio is computed elsewhere too.
            self._ratio = float(np.partition(ratios, -WIDEST - 1)[-WIDEST - 1]) + 1e-6
        self._wide = set(self._persons[ratios > self._ratio].tolist())

    def _of(self, persons: Ids) -> Entries:
        """What is known of these persons, in ascending order of their keys; zeros of those without
        templates."""
        held, steps = np.zeros(len(persons), np.int64), np.zeros(len(persons), np.uint16)
        lengths = np.zeros(len(persons), np.float32)
        if len(self._persons):
            places = np.searchsorted(self._persons, persons)
            places[places == len(self._persons)] = 0
            known = self._persons[places] == persons
            held[known], steps[known] = self._held[places[known]], self._steps[places[known]]
            lengths[known] = self._lengths[places[known]]
        if len(self._since) < len(persons):
            changed = np.fromiter(self._since, np.int64, len(self._since))
            places = np.searchsorted(persons, changed)
            places[places == len(persons)] = 0
            asked = persons[places] == changed
            values = np.array(list(self._since.values())).reshape(-1, 3)[asked]
            held[places[asked]], steps[places[asked]] = values[:, 0], values[:, 1]
            lengths[places[asked]] = values[:, 2]
        elif self._since:
            for place, person in enumerate(persons.tolist()):
                if person in self._since:
                    held[place], steps[place], lengths[place] = self._since[person]
        return held, steps, lengths


def _steps_of(effective: Floats) -> Steps:
    steps = np.rint(np.log(np.maximum(effective, 1.0)) * STEPS)
    return np.asarray(np.minimum(steps, MOST_STEPS - 1), np.uint16)


def _measured(parts: list[Rows], persons: Ids, held: Ids) -> TemplateMeasures:
    """What the templates of persons are like who have `held` of them."""
    measured = TemplateMeasures(
        np.minimum(held, 1).astype(np.float64), np.minimum(held, 1).astype(np.float32)
    )
    several = held > 1
    if several.any():
        found = measured_among(parts, persons[several])
        measured.effective[several], measured.length[several] = found.effective, found.length
    return measured


def measured_among(parts: list[Rows], persons: Ids) -> TemplateMeasures:
    """What the remaining templates of persons (n,), in ascending order of their keys, are like, in
    some rows; 0 of those who have none."""
    part, row, owners, keys = _living(parts, persons)
    order = np.lexsort((keys, owners))
    part, row = part[order], row[order]
    found = TemplateMeasures(np.zeros(len(persons)), np.zeros(len(persons), np.float32))
    theirs, starts, counts = np.unique(owners[order], return_index=True, return_counts=True)
    places = np.searchsorted(persons, theirs)
    for count in np.unique(counts).tolist():
        chosen = compared(count)
        same = np.flatnonzero(counts == count)
        at_once = max(1, ROWS_AT_ONCE // len(chosen))
        for start in range(0, len(same), at_once):
            some = same[start : start + at_once]
            numbers = starts[some][:, np.newaxis] + chosen
            vectors = _gather(parts, part[numbers], row[numbers])
            found.effective[places[some]] = effective_numbers(vectors, count)
            if len(chosen) == count:
                sums = vectors.sum(axis=1, dtype=np.float64)
            else:
                own = [slice(starts[one], starts[one] + count) for one in some]
                sums = np.array([_sum(parts, part[mine], row[mine]) for mine in own])
            found.length[places[some]] = np.linalg.norm(sums, axis=1)
    return found


def _sum(parts: list[Rows], part: NDArray[np.intp], row: NDArray[np.intp]) -> Floats:
    """The sum (d,) of rows."""
    total = np.zeros(parts[0].dimension)
    for start in range(0, len(part), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        total += _gather(parts, part[some], row[some]).sum(axis=0, dtype=np.float64)
    return total


def _living(parts: list[Rows], persons: Ids) -> tuple[NDArray[np.intp], NDArray[np.intp], Ids, Ids]:
    """The remaining rows of some persons: the number of their part and of the row in it, their
    person's key and their own."""
    wanted = PersonSet(persons)
    rows = [wanted.rows_of(one.persons) for one in parts]
    rows = [mine[one.alive[mine]] for one, mine in zip(parts, rows, strict=True)]
    return (
        np.repeat(np.arange(len(parts)), [len(mine) for mine in rows]),
        np.concatenate(rows),
        np.concatenate([one.persons[mine] for one, mine in zip(parts, rows, strict=True)]),
        np.concatenate([one.keys[mine] for one, mine in zip(parts, rows, strict=True)]),
    )


def _gather(parts: list[Rows], part: NDArray[np.intp], row: NDArray[np.intp]) -> FloatArray:
    """The vectors (..., d) of rows, each given by its part and its number."""
    gathered = np.empty((*part.shape, parts[0].dimension), np.float32)
    for number, one in enumerate(parts):
        mine = part == number
        gathered[mine] = one.vectors[row[mine]]
    return gathered
