"""How many templates each person has."""

from collections import defaultdict

import numpy as np

from app.gallery.ports import GallerySize, Ids

FOLD_AT = 65_536
SINCE_BYTES = 100  # of an entry in the dictionary


class PersonCounts:
    """Templates by person: sorted arrays for what was there at first, a dictionary of differences
    for what came and went since, so that a million people take 16 MB and not 150."""

    def __init__(self) -> None:
        self._persons: Ids = np.empty(0, np.int64)
        self._held: Ids = np.empty(0, np.int64)
        self._since: dict[int, int] = defaultdict(int)
        self.size = GallerySize(0, 0)

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes, about."""
        return self._persons.nbytes + self._held.nbytes + SINCE_BYTES * len(self._since)

    def restart(self, persons: Ids) -> None:
        """Count anew: one entry a template."""
        self._persons, self._held = np.unique(persons, return_counts=True)
        self._since.clear()
        self.size = GallerySize(len(self._persons), len(persons))

    def add(self, persons: Ids) -> None:
        """Count templates of these persons in."""
        self._change(persons, 1)

    def remove(self, persons: Ids) -> None:
        """Count templates of these persons out."""
        self._change(persons, -1)

    def _change(self, persons: Ids, sign: int) -> None:
        changed, held = np.unique(persons, return_counts=True)
        gone = come = 0
        before = self._of(changed)
        for person, number, had in zip(
            changed.tolist(), held.tolist(), before.tolist(), strict=True
        ):
            self._since[person] += sign * number
            come += had == 0
            gone += had + sign * number == 0
        self.size = GallerySize(
            self.size.persons + (come if sign > 0 else -gone),
            self.size.templates + sign * len(persons),
        )
        if len(self._since) > FOLD_AT:
            self._fold()

    def _fold(self) -> None:
        """Put the differences into the arrays."""
        changed = np.fromiter(self._since, np.int64, len(self._since))
        persons = np.union1d(self._persons, changed)
        held = self._of(persons)
        self._persons, self._held = persons[held > 0], held[held > 0]
        self._since.clear()

    def among(self, persons: Ids) -> GallerySize:
        """How much there is of these persons, whose keys rise."""
        held = self._of(persons)
        return GallerySize(int((held > 0).sum()), int(held.sum()))

    def _of(self, persons: Ids) -> Ids:
        """Templates of each of these persons, whose keys rise."""
        places = np.searchsorted(self._persons, persons)
        places[places == len(self._persons)] = 0
        held = np.zeros(len(persons), np.int64)
        if len(self._persons):
            known = self._persons[places] == persons
            held[known] = self._held[places[known]]
        if len(self._since) < len(persons):
            changed = np.fromiter(self._since, np.int64, len(self._since))
            places = np.searchsorted(persons, changed)
            places[places == len(persons)] = 0
            asked = persons[places] == changed
            since = np.fromiter(self._since.values(), np.int64, len(self._since))
            held[places[asked]] += since[asked]
        elif self._since:
            held += np.array([self._since.get(p, 0) for p in persons.tolist()], np.int64)
        return held
