"""Measured FPIR against the promised one, in galleries of degraded photos and of one group.

    python benchmarks/domain_galleries.py CACHE --groups ../shared/data/lfw/groups.csv \
        --label-noise benchmarks/lfw_label_noise.csv

CACHE is what `degraded_faces.py` wrote. Calibrations and the direction are made of the development
half of the people; every figure is of the other half. Before: cosines; after: the score, and the
threshold raised by the likeness of the gallery. Prints Markdown tables.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from domain_data import (
    TITLES,
    Cache,
    Faces,
    arguments,
    head,
    per_10_000,
    read_cache,
    refused,
    row,
    threshold_of,
)
from numpy.typing import NDArray

from app.decision.calibration import Calibration
from app.decision.comparisons import rates_at
from app.decision.rates import Rate, clopper_pearson
from app.index.comparator import Comparator
from app.index.likeness import LEAST_PERSONS, PERSONS, likeness_of_scores
from app.index.port import GallerySize
from app.lab.evaluation.labels import read_attributes

CHOICES = 20
TARGETS = (0.1, 0.03, 0.01, 0.001)
TPIR_AT = 0.01
# The threshold for two women that has no lift (docs/decisions.md), for comparison.
FIXED = 0.568

Draw = tuple[Faces, Faces, Faces]
"""A gallery, mated probes and strangers."""


def main() -> None:
    options = arguments(__doc__)
    cache = read_cache(options)
    _degraded_galleries(cache)
    _groups(cache, read_attributes(options.groups)["sex"])


@dataclass(frozen=True, slots=True)
class Rule:
    """A calibration, whether its thresholds follow the likeness of the gallery, and whether
    comparisons of two degraded faces are refused."""

    name: str
    calibration: Calibration
    lifted: bool = False
    limited: bool = False

    def lift(self, likeness: float | None, size: GallerySize) -> float:
        domain = self.calibration.domain
        return domain.lift_of(likeness, size) if self.lifted and domain is not None else 0.0


@dataclass(frozen=True, slots=True)
class Searched:
    """What the searches of one gallery found: by stranger the highest score, by mated probe its
    own person's score and whether that was first. A search whose nearest comparison is refused
    finds nobody."""

    strangers: NDArray[np.float64]
    own: NDArray[np.float64]
    first: NDArray[np.bool_]
    likeness: float | None


@dataclass(frozen=True, slots=True)
class Measured:
    """Over several draws: by target FPIR (None: out of reach), TPIR at TPIR_AT, and the lift."""

    fpir: list[Rate | None]
    tpir: float
    lift: float

    def cells(self) -> list[str]:
        """FPIR in per cent with its interval, TPIR in per cent, and the lift."""
        rates = ["out of reach" if one is None else _per_cent(one) for one in self.fpir]
        return [*rates, f"{100 * self.tpir:.1f}", f"{self.lift:.3f}"]


def _measure(draws: Sequence[Draw], rule: Rule, targets: Sequence[float]) -> Measured:
    """The interval is that of one draw's strangers, who are the same in all of them."""
    found = [_search(draw, rule) for draw in draws]
    people = len(draws[0][0].persons)
    size = GallerySize(people, people)
    lifts = [rule.lift(one.likeness, size) for one in found]
    rates: list[Rate | None] = []
    tpir = float("nan")
    for target in targets:
        point = rule.calibration.operating_point(target, size)
        if point is None:
            rates.append(None)
            continue
        thresholds = [point.threshold + lift for lift in lifts]
        pairs = list(zip(found, thresholds, strict=True))
        strangers = float(len(found[0].strangers))
        mean = float(np.mean([(one.strangers >= at).mean() for one, at in pairs]))
        low, high = clopper_pearson(np.array([mean * strangers]), np.array([strangers]))
        rates.append(Rate(mean, float(low[0]), float(high[0])))
        if target == TPIR_AT:
            tpir = float(np.mean([(one.first & (one.own >= at)).mean() for one, at in pairs]))
    return Measured(rates, tpir, float(np.mean(lifts)))


def _search(draw: Draw, rule: Rule) -> Searched:
    gallery, mated, strangers = draw
    comparator = rule.calibration.comparator
    scores = comparator.scores(mated.vectors, gallery.vectors)
    place = np.searchsorted(gallery.persons, mated.persons)
    own = scores[np.arange(len(scores)), place].astype(np.float64)
    theirs = comparator.scores(strangers.vectors, gallery.vectors)
    others, first = theirs.max(axis=1).astype(np.float64), own >= scores.max(axis=1)
    if rule.limited:
        nearest = theirs.argmax(axis=1)
        out = refused(strangers, gallery, rule.calibration, searching=True)
        others[out[np.arange(len(nearest)), nearest]] = -1
        lost = refused(mated, gallery, rule.calibration, searching=True)
        first &= ~lost[np.arange(len(scores)), place]
    return Searched(others, own, first, _likeness(gallery, comparator))


def _likeness(gallery: Faces, comparator: Comparator) -> float | None:
    some = gallery.vectors[:PERSONS]
    if len(some) < LEAST_PERSONS:
        return None
    pairs = np.triu_indices(len(some), 1)
    return likeness_of_scores(comparator.scores(some, some)[pairs])


def _degraded_galleries(cache: Cache) -> None:
    print("Galleries degraded like their probes: FPIR in % at promised 1 %, TPIR in %, lift\n")
    rules = [
        Rule("before", cache.before),
        Rule("score and lift", cache.after, lifted=True),
        Rule("and limit", cache.after, lifted=True, limited=True),
    ]
    head(
        "stratum", *(f"{rule.name}: {what}" for rule in rules for what in ("FPIR", "TPIR", "lift"))
    )
    for kind, faces in cache.kinds.items():
        found = [_measure([_parted(faces)], rule, [TPIR_AT]) for rule in rules]
        row(TITLES[kind], *(cell for one in found for cell in one.cells()))
    print()


def _parted(faces: Faces) -> Draw:
    """The first photo of people with two, their second ones, and people with one."""
    names, first, counts = np.unique(faces.persons, return_index=True, return_counts=True)
    several = np.isin(faces.persons, names[counts > 1])
    enrolled = np.zeros(len(several), np.bool_)
    enrolled[first] = True
    return faces.of(several & enrolled), faces.of(several & ~enrolled), faces.of(~several)


def _groups(cache: Cache, group_of: dict[str, str]) -> None:
    faces = cache.sharp
    group = np.array([group_of.get(person, "") for person in faces.persons])
    galleries = {"mixed": np.ones(len(group), np.bool_)}
    galleries |= {name: group == name for name in sorted(set(group) - {""})}
    rules = [
        Rule("before", cache.before),
        Rule("score", cache.after),
        Rule("score and lift", cache.after, lifted=True),
    ]
    print(f"Galleries of one group, {CHOICES} random choices of the photo that is enrolled\n")
    head("gallery", "strangers", "rule", *(f"{100 * target:g} %" for target in TARGETS),
         f"TPIR at {100 * TPIR_AT:g} %", "lift")  # fmt: skip
    for size in (None, 50):
        for name, rows in galleries.items():
            draws = list(_draws(faces.of(rows), size))
            people, strangers = (str(len(draws[0][part].persons)) for part in (0, 2))
            for rule in rules:
                cells = _measure(draws, rule, TARGETS).cells()
                row(f"{people} {name}", strangers, rule.name, *cells)
    print("\nOne comparison within a group: FMR per 10,000 at the threshold for 1e-4, and at "
          f"{FIXED}\n")  # fmt: skip
    at = np.array([threshold_of(cache.after), FIXED])
    for name, rows in galleries.items():
        curve = rates_at(faces.of(rows).labelled(cache.after.comparator), at)
        columns = zip(curve.rates, curve.low, curve.high, strict=True)
        row(name, *(per_10_000(Rate(*map(float, column))) for column in columns))


def _draws(faces: Faces, size: int | None = None) -> Iterator[Draw]:
    """Random choices of the photo that is enrolled of each person who has several."""
    names, counts = np.unique(faces.persons, return_counts=True)
    for seed in range(CHOICES):
        generator = np.random.default_rng(seed)
        several = generator.permutation(names[counts > 1])[:size]
        order = generator.permutation(len(faces.persons))
        _, place = np.unique(faces.persons[order], return_index=True)
        picked = np.zeros(len(order), np.bool_)
        picked[order[place]] = True
        known = np.isin(faces.persons, several)
        strangers = np.isin(faces.persons, names[counts == 1])
        gallery = faces.of(known & picked)
        gallery = gallery.of(np.argsort(gallery.persons))
        yield gallery, faces.of(known & ~picked), faces.of(strangers)


def _per_cent(rate: Rate) -> str:
    places = 1 if rate.value >= 0.02 else 2
    value, low, high = (f"{100 * one:.{places}f}" for one in (rate.value, rate.low, rate.high))
    return f"{value} ({low}–{high})"


if __name__ == "__main__":
    main()
