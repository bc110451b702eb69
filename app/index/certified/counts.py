"""How many templates each person has, and how many different ones they amount to."""

import numpy as np
from numpy.typing import NDArray

from app.index.certified.persons import PersonSet
from app.index.certified.rows import Rows
from app.index.effective import Floats, compared, effective_numbers
from app.index.port import GallerySize, Ids
from app.types import FloatArray

FOLD_AT = 65_536
SINCE_BYTES = 200  # of an entry in the dictionary
# Effective numbers are kept in steps of 2 %: the same number, whatever the order of a sum.
STEPS = 50
MOST_STEPS = STEPS * 22  # of more than three thousand million templates
ROWS_AT_ONCE = 8_192

Steps = NDArray[np.uint16]


class PersonCounts:
    """Templates by person: sorted arrays for what was there at first, a dictionary of those who
    changed since, so that a million people take 18 MB and not 200."""

    def __init__(self) -> None:
        self._persons: Ids = np.empty(0, np.int64)
        self._held: Ids = np.empty(0, np.int64)
        self._steps: Steps = np.empty(0, np.uint16)
        self._since: dict[int, tuple[int, int]] = {}
        self._spread: NDArray[np.int64] = np.zeros(MOST_STEPS, np.int64)
        self._templates = 0
        self.size = GallerySize(0, 0)

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, about."""
        arrays = (self._persons, self._held, self._steps, self._spread)
        return sum(array.nbytes for array in arrays) + SINCE_BYTES * len(self._since)

    @classmethod
    def of(cls, parts: list[Rows]) -> "PersonCounts":
        """The counts of the living rows."""
        made = cls()
        owners = np.concatenate([part.persons[part.alive] for part in parts])
        persons, held = np.unique(owners, return_counts=True)
        made.restart(persons, held, _effective(parts, persons, held))
        return made

    def change(self, parts: list[Rows], persons: Ids, sign: int) -> None:
        """Templates of these persons, one entry each, came (1) or went (-1); `parts` is what there
        is now."""
        changed, number = np.unique(persons, return_counts=True)
        held = self.held(changed) + sign * number
        self.put(changed, held, _effective(parts, changed, held))

    def restart(self, persons: Ids, held: Ids, effective: Floats) -> None:
        """Start over with these persons (n,), whose keys rise, as in `put`; each has templates."""
        self._persons, self._held, self._steps = persons, held, _steps_of(effective)
        self._since.clear()
        self._spread = np.bincount(self._steps, minlength=MOST_STEPS).astype(np.int64)
        self._templates = int(held.sum())
        self.size = self._size_of(self._spread, self._templates)

    def put(self, persons: Ids, held: Ids, effective: Floats) -> None:
        """Persons (n,), whose keys rise, have so many templates now, and so many different ones."""
        before, steps_before = self._of(persons)
        steps = _steps_of(effective)
        np.subtract.at(self._spread, steps_before[before > 0], 1)
        np.add.at(self._spread, steps[held > 0], 1)
        self._templates += int(held.sum() - before.sum())
        values = zip(held.tolist(), steps.tolist(), strict=True)
        self._since.update(zip(persons.tolist(), values, strict=True))
        self.size = self._size_of(self._spread, self._templates)
        if len(self._since) > FOLD_AT:
            self._fold()

    def held(self, persons: Ids) -> Ids:
        """Templates of each of these persons, whose keys rise."""
        return self._of(persons)[0]

    def effective(self, persons: Ids) -> Floats:
        """The effective numbers of their templates; 0 of those who have none."""
        held, steps = self._of(persons)
        return np.where(held > 0, np.exp(steps / STEPS), 0.0)

    def among(self, persons: Ids) -> GallerySize:
        """How much there is of these persons, whose keys rise."""
        held, steps = self._of(persons)
        return self._size_of(np.bincount(steps[held > 0], minlength=1), int(held.sum()))

    @staticmethod
    def _size_of(spread: NDArray[np.int64], templates: int) -> GallerySize:
        used = np.flatnonzero(spread)
        effective = np.exp(used / STEPS).tolist()
        people = spread[used].tolist()
        return GallerySize(sum(people), templates, tuple(zip(effective, people, strict=True)))

    def _fold(self) -> None:
        """Put what changed into the arrays."""
        changed = np.fromiter(self._since, np.int64, len(self._since))
        persons = np.union1d(self._persons, changed)
        held, steps = self._of(persons)
        self._persons, self._held, self._steps = persons[held > 0], held[held > 0], steps[held > 0]
        self._since.clear()

    def _of(self, persons: Ids) -> tuple[Ids, Steps]:
        """Templates of each of these persons, whose keys rise, and the steps of their effective
        numbers."""
        held, steps = np.zeros(len(persons), np.int64), np.zeros(len(persons), np.uint16)
        if len(self._persons):
            places = np.searchsorted(self._persons, persons)
            places[places == len(self._persons)] = 0
            known = self._persons[places] == persons
            held[known], steps[known] = self._held[places[known]], self._steps[places[known]]
        if len(self._since) < len(persons):
            changed = np.fromiter(self._since, np.int64, len(self._since))
            places = np.searchsorted(persons, changed)
            places[places == len(persons)] = 0
            asked = persons[places] == changed
            values = np.array(list(self._since.values()), np.int64).reshape(-1, 2)[asked]
            held[places[asked]], steps[places[asked]] = values[:, 0], values[:, 1]
        elif self._since:
            for place, person in enumerate(persons.tolist()):
                if person in self._since:
                    held[place], steps[place] = self._since[person]
        return held, steps


def _steps_of(effective: Floats) -> Steps:
    steps = np.rint(np.log(np.maximum(effective, 1.0)) * STEPS)
    return np.asarray(np.minimum(steps, MOST_STEPS - 1), np.uint16)


def _effective(parts: list[Rows], persons: Ids, held: Ids) -> Floats:
    """The effective numbers of the templates of persons who have `held` of them."""
    effective = np.minimum(held, 1).astype(np.float64)
    several = held > 1
    if several.any():
        effective[several] = effective_among(parts, persons[several])
    return effective


def effective_among(parts: list[Rows], persons: Ids) -> Floats:
    """The effective numbers (n,) of the living templates of persons (n,), whose keys rise, in some
    rows; 0 of those who have none."""
    part, row, owners, keys = _living(parts, persons)
    order = np.lexsort((keys, owners))
    part, row = part[order], row[order]
    found = np.zeros(len(persons))
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
            found[places[some]] = effective_numbers(vectors, count)
    return found


def _living(parts: list[Rows], persons: Ids) -> tuple[NDArray[np.intp], NDArray[np.intp], Ids, Ids]:
    """The living rows of some persons: the number of their part and of the row in it, their
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
