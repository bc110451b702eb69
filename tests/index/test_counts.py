"""Templates by person, whether they lie in arrays or among the differences."""

import numpy as np
import pytest

from app.index.certified import counts as counts_module
from app.index.certified.counts import PersonCounts, TemplateMeasures, measured_among
from app.index.certified.rows import Rows
from app.index.person_scores import effective_templates, ratios_of
from app.index.port import GallerySize, Templates
from app.types import FloatArray


@pytest.mark.parametrize("fold_at", [0, 3, 10**6])
def test_counts_are_those_of_a_dictionary(fold_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts_module, "FOLD_AT", fold_at)
    generator = np.random.default_rng(0)
    counts, truth = PersonCounts(), dict[int, tuple[int, float]]()
    lengths = dict[int, float]()
    start = np.arange(0, 30, 2)
    counts.restart(
        start, np.ones(15, np.int64), TemplateMeasures(np.ones(15), np.ones(15, np.float32))
    )
    truth |= dict.fromkeys(start.tolist(), (1, 1.0))
    lengths |= dict.fromkeys(start.tolist(), 1.0)
    for _ in range(60):
        changed = np.unique(generator.integers(0, 40, int(generator.integers(0, 5))))
        held = generator.integers(0, 4, len(changed))
        effective = np.minimum(held, generator.uniform(1, 4, len(changed)))
        length = (held * generator.uniform(0.5, 1, len(changed))).astype(np.float32)
        counts.put(changed, held, TemplateMeasures(effective, length))
        lengths |= dict(zip(changed.tolist(), length.tolist(), strict=True))
        values = zip(held.tolist(), effective.tolist(), strict=True)
        truth |= dict(zip(changed.tolist(), values, strict=True))
        there = {person: value for person, value in truth.items() if value[0]}
        check(counts.size, list(there.values()))
        assert counts.held(changed).tolist() == held.tolist()
        some = set(generator.integers(0, 50, 8).tolist())
        found = [there[person] for person in some if person in there]
        check(counts.among(np.array(sorted(some), np.int64)), found)
        check_lengths(counts, {person: (there[person][0], lengths[person]) for person in there})


def check(size: GallerySize, people: list[tuple[int, float]]) -> None:
    assert (size.persons, size.templates) == (len(people), sum(held for held, _ in people))
    stated = [n for n, count in size.spread for _ in range(count)]
    assert stated == pytest.approx(sorted(n for _, n in people), rel=0.011)


def check_lengths(counts: PersonCounts, truth: dict[int, tuple[int, float]]) -> None:
    """As stated, and nobody but the wide has a larger ratio than is stated for all others."""
    persons = np.array(sorted(truth), np.int64)
    held, lengths = counts.lengths(persons)
    assert [(int(m), float(x)) for m, x in zip(held, lengths, strict=True)] == [
        truth[person] for person in persons.tolist()
    ]
    wide, most = counts.widest()
    assert set(wide.tolist()) <= set(truth)
    assert max(ratios_of(held, lengths)[~np.isin(persons, wide)], default=1.0) <= most


def test_only_the_most_diverse_persons_are_wide() -> None:
    """They are chosen anew when there are too many, and leave with their templates."""
    generator = np.random.default_rng(2)
    counts, persons = PersonCounts(), np.arange(1_000)
    length = generator.uniform(1.5, 2.0, 1_000).astype(np.float32)
    length[500:510] = 1.2
    for some in np.split(generator.permutation(persons), 20):
        rising = np.sort(some)
        held = np.full(50, 2)
        counts.put(rising, held, TemplateMeasures(np.full(50, 1.5), length[rising]))
    wide, most = counts.widest()
    assert len(wide) <= counts_module.MOST_WIDE
    assert set(range(500, 510)) <= set(wide.tolist())
    assert 1.2 < most < 2 / 1.45
    gone = TemplateMeasures(np.zeros(10), np.zeros(10, np.float32))
    counts.put(np.arange(500, 510), np.zeros(10, np.int64), gone)
    assert not set(range(500, 510)) & set(counts.widest()[0].tolist())


def test_effective_numbers_are_those_of_the_living_templates_of_each_person() -> None:
    parts, owned = scattered(np.random.default_rng(1), persons=40, rows=400, parts=3)
    persons = np.arange(0, 45, dtype=np.int64)
    found = measured_among(parts, persons)
    for person in persons.tolist():
        mine = owned.get(person, np.empty((0, 16), np.float32))
        assert found.effective[person] == pytest.approx(effective_templates(mine), rel=1e-5)
        length = np.linalg.norm(mine.sum(axis=0))
        assert found.length[person] == pytest.approx(length, rel=1e-5)


def scattered(
    generator: np.random.Generator, *, persons: int, rows: int, parts: int
) -> tuple[list[Rows], dict[int, FloatArray]]:
    """Templates of people in several parts, a fifth of them dead; and the living of each person."""
    owner = generator.integers(0, persons, rows)
    vectors = generator.normal(size=(rows, 16)) + 2 * generator.normal(size=(persons, 16))[owner]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    all_rows = Rows.of(Templates(np.arange(rows), owner, vectors.astype(np.float32)))
    all_rows.remove(generator.choice(rows, rows // 5, replace=False))
    owned = {
        person: all_rows.vectors[all_rows.alive & (owner == person)]
        for person in np.unique(owner[all_rows.alive]).tolist()
    }
    part = generator.integers(0, parts, rows)
    divided = [
        Rows(all_rows.keys[mine], owner[mine], all_rows.vectors[mine], all_rows.alive[mine])
        for mine in (part == number for number in range(parts))
    ]
    return divided, owned
