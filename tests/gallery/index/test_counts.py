"""Templates by person, whether they lie in arrays or among the differences."""

import numpy as np
import pytest

from app.gallery.index import counts as counts_module
from app.gallery.index.counts import PersonCounts
from app.gallery.ports import GallerySize


@pytest.mark.parametrize("fold_at", [0, 3, 10**6])
def test_counts_are_those_of_a_dictionary(fold_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "FOLD_AT", fold_at)
    generator = np.random.default_rng(0)
    counts, truth = PersonCounts(), dict[int, int]()
    start = generator.integers(0, 30, 50)
    counts.restart(start)
    for person in start.tolist():
        truth[person] = truth.get(person, 0) + 1
    for _ in range(60):
        come = generator.integers(0, 40, int(generator.integers(0, 5)))
        counts.add(come)
        for person in come.tolist():
            truth[person] = truth.get(person, 0) + 1
        there = np.array([p for p, n in truth.items() for _ in range(n)], np.int64)
        go = generator.choice(there, int(generator.integers(0, 4)), replace=False)
        counts.remove(go)
        for person in go.tolist():
            truth[person] -= 1
        held = {person: n for person, n in truth.items() if n}
        assert counts.size == GallerySize(len(held), sum(held.values()))
        some = set(generator.integers(0, 50, 8).tolist())
        found = [held[person] for person in some if person in held]
        assert counts.among(np.array(sorted(some), np.int64)) == GallerySize(len(found), sum(found))
