"""Persons who look alike, before and after they are declared to be different.

    python benchmarks/pairs.py --photos shared/data/lfw/images --cache FILE [--pack default]

Enrols 1, 2 or 3 random photos of each person, takes every pair of different persons who are alike
(by the highest similarity of two templates), and searches for the other photos of both. A probe
whose best of the two reaches the threshold is right, wrong, or ambiguous: with no declaration the
better one of the two is the answer; with one the rule of `app.decision.pairs` decides. Each pair
counts once in a round; the persons of `lfw_label_noise.csv` who are one person, and photos there
that show somebody else, are left out. The margin uses the mean and the deviation of the mated
similarities of the persons of one half, and is tried on the pairs of the other half.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from embeddings import Vectors, embed_folder
from numpy.typing import NDArray

from app.decision.pairs import Spread, margin_of

NOISE = Path(__file__).with_name("lfw_label_noise.csv")
STRATA = ((0.45, 0.5), (0.5, 0.55), (0.55, 0.6), (0.6, 1.01))
PROBES = 10  # of one person at most, so that few persons do not make up a stratum


@dataclass(frozen=True)
class Pair:
    """Probes of one of two persons: similarities to them (n,) and to the other (n,)."""

    alike: float
    names: frozenset[str]
    own: NDArray[np.float32]
    other: NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--pack", default="default")
    parser.add_argument("--threshold", type=float, default=0.53, help="FPIR 1 %% of 100 people")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    vectors, persons = embed_folder(options.photos, options.pack, options.cache)
    one_person = read_noise()
    print("templates  alike        pairs  probes   before: right  wrong  none"
          "   after: right  ambiguous  wrong   worst pair")  # fmt: skip
    for templates in (1, 2, 3):
        strata: dict[tuple[float, float], list[tuple[Pair, Spread]]] = defaultdict(list)
        for seed in range(options.rounds):
            for pair, spread in held_out(vectors, persons, templates, seed):
                stratum = next((s for s in STRATA if s[0] <= pair.alike < s[1]), None)
                if stratum is not None and pair.names not in one_person:
                    strata[stratum].append((pair, spread))
        for stratum in STRATA:
            show(templates, stratum, strata[stratum], options.threshold)


def read_noise() -> set[frozenset[str]]:
    """Pairs of names of one person."""
    with NOISE.open() as file:
        return {
            frozenset((row["person_a"], row["person_b"]))
            for row in csv.DictReader(file)
            if row["person_a"]
        }


def held_out(
    vectors: Vectors, persons: NDArray[np.str_], templates: int, seed: int
) -> Iterator[tuple[Pair, Spread]]:
    """Pairs within one half of the people, with the spread of the other half."""
    random = np.random.default_rng(seed)
    photos = {name: random.permutation(np.flatnonzero(persons == name)) for name in set(persons)}
    names = random.permutation(sorted(one for one, mine in photos.items() if len(mine) > templates))
    half = len(names) // 2
    for mine, theirs in ((names[:half], names[half:]), (names[half:], names[:half])):
        spread = spread_of([vectors[photos[name]] for name in theirs])
        for pair in alike_pairs(vectors, {name: photos[name] for name in mine}, templates):
            yield pair, spread


def spread_of(people: list[Vectors]) -> Spread:
    """Of the mated similarities of two photos, each person counting once."""
    means, squares = [], []
    for own in people:
        mated = (own @ own.T)[np.triu_indices(len(own), 1)]
        means.append(mated.mean())
        squares.append((mated**2).mean())
    mean = float(np.mean(means))
    return Spread(mean, float(np.sqrt(np.mean(squares) - mean**2)))


def alike_pairs(
    vectors: Vectors, photos: dict[str, NDArray[np.intp]], templates: int
) -> Iterator[Pair]:
    """Both sides of every pair of people who are alike."""
    names = list(photos)
    enrolled = np.stack([vectors[photos[name][:templates]] for name in names])
    flat = enrolled.reshape(-1, vectors.shape[1])
    alike = (flat @ flat.T).reshape(len(names), templates, len(names), templates).max(axis=(1, 3))
    np.fill_diagonal(alike, -1)
    for a, b in zip(*np.where(alike >= STRATA[0][0]), strict=True):
        probes = vectors[photos[names[a]][templates : templates + PROBES]]
        own, other = ((enrolled[one] @ probes.T).max(axis=0) for one in (a, b))
        yield Pair(float(alike[a, b]), frozenset((names[a], names[b])), own, other)


def show(
    templates: int,
    stratum: tuple[float, float],
    found: list[tuple[Pair, Spread]],
    threshold: float,
) -> None:
    """One line of the table; every side of a pair has one vote, shared by its probes."""
    votes: dict[frozenset[str], list[NDArray[np.float64]]] = defaultdict(list)
    probes = 0
    for pair, spread in found:
        reached = np.maximum(pair.own, pair.other) >= threshold
        lead = pair.own - pair.other
        decided = np.abs(lead) >= margin_of(pair.alike, spread)
        right, wrong = reached & (lead > 0), reached & (lead <= 0)
        columns = (right, wrong, ~reached, right & decided, reached & ~decided, wrong & decided)
        votes[pair.names].append(np.array([column.mean() for column in columns]))
        probes += len(lead)
    if not votes:
        return
    by_pair = {names: np.mean(rows, axis=0) for names, rows in votes.items()}
    share = 100 * np.mean([row for rows in votes.values() for row in rows], axis=0)
    worst = max(by_pair, key=lambda names: by_pair[names][5])
    low, high = stratum
    print(
        f"{templates:9}  {low:.2f}–{min(high, 1):.2f} {len(votes):9} {probes:8}"
        f" {share[0]:15.2f} {share[1]:6.2f} {share[2]:5.1f} {share[3]:14.2f} {share[4]:10.2f}"
        f" {share[5]:6.2f}   {' / '.join(sorted(worst))} {100 * by_pair[worst][5]:.0f} %"
    )


if __name__ == "__main__":
    main()
