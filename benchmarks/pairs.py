"""Persons who look alike, before and after they are declared to be different.

    python benchmarks/pairs.py --photos shared/data/lfw/images --cache FILE [--pack default]

Enrolls 1, 2 or 3 random photos of each person, takes every pair of different persons who are alike
(by the highest similarity of two templates), and searches for the other photos of both. A probe
whose best of the two reaches the threshold is right, wrong, or ambiguous: with no declaration the
better one of the two is the answer; with one the rule of `app.decision.pairs` decides. Each pair
counts once in a round; persons with a photo of somebody else and pairs who are one person, by
`lfw_label_noise.csv`, are left out. The margin uses the mean and the deviation of the mated
similarities of the persons of one half, and is tried on the pairs of the other half.

LFW has no identical twins, so a second table has made-up ones: a person's twin is another person
whose photos are each moved towards a photo of the first by a weight. Both the identity and what
differs from photo to photo grow alike, so photos of the twin are as similar to one another as those
of a real person. Photos that were used for the twin are no templates or probes of the first.

At last the pairs of the first table with two templates each, all together, by each score of several
templates (`app.index.person_scores`).
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from embeddings import Vectors, embed_folder, unit
from numpy.typing import NDArray

from app.decision.calibrations import read_calibration
from app.decision.pairs import PairSimilarity, Spread, margin_of
from app.index.comparator import COSINE, Comparator
from app.index.person_scores import PersonScore

NOISE = Path(__file__).with_name("lfw_label_noise.csv")
# By their faces, the photos 1 and 2 of the one are 2 and 1 of the other's person.
EXCHANGED = frozenset(("Flor_Montulo", "Nora_Bendijo"))
WEIGHTS = (1.0, 1.5, 2.0, 3.0)  # of made-up twins
STRATA = ((0.45, 0.5), (0.5, 0.55), (0.55, 0.6), (0.6, 1.01))
PROBES = 10  # of one person at most, so that few persons do not make up a stratum


@dataclass(frozen=True)
class People:
    """Embeddings (n, d), whose they are (n,), and how they are compared."""

    vectors: Vectors
    persons: NDArray[np.str_]
    comparator: Comparator

    def shuffled(self, random: np.random.Generator) -> dict[str, NDArray[np.intp]]:
        """The rows of each person in random order."""
        names = sorted(set(self.persons))
        return {name: random.permutation(np.flatnonzero(self.persons == name)) for name in names}

    def similarities(
        self, templates: Vectors, probes: Vectors, score: PersonScore = PersonScore.BEST
    ) -> NDArray[np.float32]:
        """Of each probe (m,) to a person with these templates."""
        scores = self.comparator.scores(probes, templates)
        return np.array([score.of_templates(row, templates) for row in scores], np.float32)


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
    parser.add_argument("--calibration", type=Path, default=Path("models/default/calibration.json"))
    parser.add_argument("--threshold", type=float, default=0.53, help="FPIR 1 %% of 100 people")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    vectors, persons = embed_folder(options.photos, options.pack, options.cache)
    one_person, mislabelled = read_noise()
    kept = ~np.isin(persons, sorted(mislabelled))
    vectors, persons = vectors[kept], persons[kept]
    domain = read_calibration(options.calibration).domain
    people = People(vectors, persons, COSINE if domain is None else domain.shared.comparator)
    print("templates  alike        pairs  probes   before: right  wrong  none"
          "   after: right  ambiguous  wrong   worst pair")  # fmt: skip
    for templates in (1, 2, 3):
        strata: dict[tuple[float, float], list[tuple[Pair, Spread]]] = defaultdict(list)
        for seed in range(options.rounds):
            for pair, spread in held_out(people, templates, seed):
                stratum = next((s for s in STRATA if s[0] <= pair.alike < s[1]), None)
                if stratum is not None and pair.names not in one_person:
                    strata[stratum].append((pair, spread))
        for low, high in STRATA:
            name = f"{low:.2f}–{min(high, 1):.2f}"
            show(templates, name, strata[low, high], options.threshold)
    for templates in (1, 2):
        for weight in WEIGHTS:
            made = [
                (pair, spread)
                for seed in range(options.rounds)
                for pair, spread in made_up(people, templates, weight, seed)
            ]
            alike = np.mean([pair.alike for pair, _ in made])
            show(templates, f"twin {alike:.2f}", made, options.threshold)
    for score in PersonScore:
        found = [
            (pair, spread)
            for seed in range(options.rounds)
            for pair, spread in held_out(people, 2, seed, score)
            if pair.names not in one_person
        ]
        show(2, f"all, by {score.value}", found, options.threshold)


def read_noise() -> tuple[set[frozenset[str]], set[str]]:
    """Pairs of names of one person, or of two whose photos are exchanged; and names of persons who
    have a photo of somebody else."""
    with NOISE.open() as file:
        rows = list(csv.DictReader(file))
    one_person = {frozenset((row["person_a"], row["person_b"])) for row in rows if row["person_a"]}
    return one_person | {EXCHANGED}, {row["image"].split("/")[0] for row in rows if row["image"]}


def held_out(
    people: People, templates: int, seed: int, score: PersonScore = PersonScore.BEST
) -> Iterator[tuple[Pair, Spread]]:
    """Pairs within one half of the people, with the spread of the other half."""
    random = np.random.default_rng(seed)
    photos = people.shuffled(random)
    names = random.permutation(sorted(one for one, mine in photos.items() if len(mine) > templates))
    half = len(names) // 2
    for mine, theirs in ((names[:half], names[half:]), (names[half:], names[:half])):
        spread = spread_of(people, [people.vectors[photos[name]] for name in theirs])
        some = {name: photos[name] for name in mine}
        for pair in alike_pairs(people, some, templates, score):
            yield pair, spread


def spread_of(people: People, photos: list[Vectors]) -> Spread:
    """Of the mated similarities of two photos, each person counting once."""
    means, squares = [], []
    for own in photos:
        mated = people.comparator.scores(own, own)[np.triu_indices(len(own), 1)]
        means.append(mated.mean())
        squares.append((mated**2).mean())
    mean = float(np.mean(means))
    return Spread(mean, float(np.sqrt(np.mean(squares) - mean**2)))


def alike_pairs(
    people: People, photos: dict[str, NDArray[np.intp]], templates: int, score: PersonScore
) -> Iterator[Pair]:
    """Both sides of every pair of people who are alike."""
    names = list(photos)
    enrolled = np.stack([people.vectors[photos[name][:templates]] for name in names])
    flat = enrolled.reshape(-1, people.vectors.shape[1])
    alike = (
        people.comparator.scores(flat, flat)
        .reshape(len(names), templates, len(names), templates)
        .max(axis=(1, 3))
    )
    np.fill_diagonal(alike, -1)
    for a, b in zip(*np.where(alike >= STRATA[0][0]), strict=True):
        probes = people.vectors[photos[names[a]][templates : templates + PROBES]]
        own, other = (people.similarities(enrolled[one], probes, score) for one in (a, b))
        yield Pair(float(alike[a, b]), frozenset((names[a], names[b])), own, other)


def made_up(
    people: People, templates: int, weight: float, seed: int
) -> Iterator[tuple[Pair, Spread]]:
    """Both sides of a person and a made-up twin, for everybody with enough photos."""
    random = np.random.default_rng(seed)
    photos, vectors = people.shuffled(random), people.vectors
    names = random.permutation(sorted(one for one, mine in photos.items() if len(mine) > 2))
    half = len(names) // 2
    spread = spread_of(people, [vectors[photos[name]] for name in names[half:]])
    least = templates + 1
    for name, other in pairwise(names[:half]):
        mine, theirs = vectors[photos[name]], vectors[photos[other]]
        if len(mine) < 2 * least or len(theirs) < least:
            continue
        used = min(len(mine) - least, len(theirs))
        twins = (mine[used:], unit(theirs[:used] + weight * mine[:used]))
        alike = float(people.comparator.scores(*(one[:templates] for one in twins)).max())
        for own, rival in (twins, twins[::-1]):
            probes = own[templates : templates + PROBES]
            leads = (people.similarities(one[:templates], probes) for one in (own, rival))
            yield Pair(alike, frozenset((name, other)), *leads), spread


def show(
    templates: int,
    stratum: str,
    found: list[tuple[Pair, Spread]],
    threshold: float,
) -> None:
    """One line of the table; every side of a pair has one vote, shared by its probes."""
    votes: dict[frozenset[str], list[NDArray[np.float64]]] = defaultdict(list)
    probes = 0
    for pair, spread in found:
        reached = np.maximum(pair.own, pair.other) >= threshold
        lead = pair.own - pair.other
        decided = np.abs(lead) >= margin_of(PairSimilarity(pair.alike, templates), spread)
        right, wrong = reached & (lead > 0), reached & (lead <= 0)
        columns = (right, wrong, ~reached, right & decided, reached & ~decided, wrong & decided)
        votes[pair.names].append(np.array([column.mean() for column in columns]))
        probes += len(lead)
    if not votes:
        return
    by_pair = {names: np.mean(rows, axis=0) for names, rows in votes.items()}
    share = 100 * np.mean([row for rows in votes.values() for row in rows], axis=0)
    worst = max(by_pair, key=lambda names: by_pair[names][5])
    print(
        f"{templates:9}  {stratum} {len(votes):9} {probes:8}"
        f" {share[0]:15.2f} {share[1]:6.2f} {share[2]:5.1f} {share[3]:14.2f} {share[4]:10.2f}"
        f" {share[5]:6.2f}   {' / '.join(sorted(worst))} {100 * by_pair[worst][5]:.0f} %"
    )


if __name__ == "__main__":
    main()
