"""Decisions between two persons who were declared to be different.

Two people who look alike are both above the threshold for photos of either. Between them the
difference of the two similarities decides (the lead), unless photos of the other person often have
as large a lead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from app.decision.calibration import Calibration, Curve
from app.decision.verdicts import Doubt, Status, Verdict
from app.errors import PersonNotFound
from app.gallery.candidates import Candidate
from app.gallery.gallery import Gallery
from app.index.person_scores import PersonScore
from app.store.records import CollectionRecord
from app.store.sql.pairs import PairStore
from app.types import FloatArray

# Photos of one of the two that the lead may assign to the other: one in a hundred.
PAIR_ERROR = 0.01
# The quantile of the normal distribution that PAIR_ERROR of all values exceed.
QUANTILE = 2.326
# Of the similarity of two persons: the one-sided 95 % interval.
UPPER_BOUND = 1.645
# Templates of a person that are compared with all of another at a time.
TEMPLATES_AT_ONCE = 1_024
PAIRS_AT_ONCE = 1_000

MARGIN_TOO_SMALL = "margin_too_small"
NEARER_TO_OTHER = "nearer_to_other"


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of the similarities of two photos of one person."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, fnmr: Curve) -> "Spread | None":
        """The FNMR is their distribution function, of which those above the curve's end lie between
        there and 1. None for a curve that does not rise."""
        if fnmr.rate[-1] <= fnmr.rate[0]:
            return None
        similarities, shares = np.array([*fnmr.similarity, 1.0]), np.diff([*fnmr.rate, 1.0])
        middles, total = (similarities[1:] + similarities[:-1]) / 2, shares.sum()
        mean = float(middles @ shares / total)
        return cls(mean, float(np.sqrt((middles - mean) ** 2 @ shares / total)))


@dataclass(frozen=True, slots=True)
class PairSimilarity:
    """How alike two persons are: the highest `similarity` of two templates, one of each, and the
    smaller number of `templates` that they have."""

    similarity: float
    templates: int


def pair_margin(alike: PairSimilarity, calibration: Calibration | None) -> float | None:
    """The lead that one of two persons needs over the other. None without mated comparisons."""
    if calibration is None or calibration.fnmr is None:
        return None
    spread = Spread.of(calibration.fnmr)
    return None if spread is None else margin_of(alike, spread)


def margin_of(alike: PairSimilarity, spread: Spread) -> float:
    """The lead that PAIR_ERROR of the probes of the wrong one have at most.

    The lead x·a - x·b of a probe x is its position along a - b, times the length of a - b. Measured
    on LFW, the standard deviation of that position does not depend on how alike a and b are, and is
    a little below that of mated similarities; so that of the lead is at most s·√(2 - 2·alike), s
    being the latter. A probe of b trails by `mean - alike` on average, as its similarity to b is
    that of a mated comparison and its similarity to a that of the two persons.

    That is known from few templates: the upper end of its 95 % interval counts, at a standard error
    of s/√templates. No similarity beyond the mean counts: there the margin is largest.
    """
    error = spread.deviation / np.sqrt(max(alike.templates, 1))
    similarity = min(alike.similarity + UPPER_BOUND * error, spread.mean)
    deviation = spread.deviation * np.sqrt(2 - 2 * similarity)
    return float(max(0.0, QUANTILE * deviation - (spread.mean - similarity)))


def pair_similarity(gallery: Gallery, name: str, one: str, other: str) -> PairSimilarity:
    """Of two persons of a collection. Raises PersonNotFound."""
    _, mine = gallery.store.embeddings.of_person(name, one)
    _, theirs = gallery.store.embeddings.of_person(name, other)
    templates = min(len(mine), len(theirs))
    starts = range(0, len(mine) if templates else 0, TEMPLATES_AT_ONCE)
    scores = (gallery.comparator.scores(mine[i : i + TEMPLATES_AT_ONCE], theirs) for i in starts)
    return PairSimilarity(max((float(some.max()) for some in scores), default=-1.0), templates)


def all_declared(pairs: PairStore, name: str) -> dict[int, set[int]]:
    """Of each person with a declared pair, by key, the keys of the others."""
    found: dict[int, set[int]] = {}
    after: tuple[int, int] | None = None
    while page := pairs.page(name, after, PAIRS_AT_ONCE):
        for one, other in (pair.keys for pair in page):
            found.setdefault(one, set()).add(other)
            found.setdefault(other, set()).add(one)
        after = page[-1].keys
    return found


@dataclass(frozen=True, slots=True)
class PairRules:
    """Applies the declared pairs of one collection, at the calibration and the score of a person's
    templates of one call."""

    gallery: Gallery
    record: CollectionRecord
    calibration: Calibration | None
    score: PersonScore = PersonScore.BEST

    def applied(self, verdicts: Sequence[Verdict], probes: Iterable[FloatArray]) -> list[Verdict]:
        """The verdicts, of which some are ambiguous now; `probes` (d,) in their order."""
        ids = {one.person.face.person_id for one in verdicts if one.person is not None}
        others = self._counterparts(ids)
        if not others:
            return list(verdicts)
        return [
            self._decided(verdict, probe, others.get(verdict.person.face.person_id, ()))
            if verdict.person is not None
            else verdict
            for verdict, probe in zip(verdicts, probes, strict=True)
        ]

    def doubt(self, claimed: Candidate, probe: FloatArray) -> Doubt | None:
        """Why a claimed person is not accepted although the similarity reaches the threshold; None
        if accepted."""
        person_id = claimed.face.person_id
        others = self._counterparts({person_id}).get(person_id, ())
        return self._doubt(claimed, probe, others)

    def _counterparts(self, person_ids: set[str]) -> dict[str, list[str]]:
        if not person_ids:
            return {}
        return self.gallery.store.pairs.counterparts(self.record, person_ids, matchable=True)

    def _decided(self, verdict: Verdict, probe: FloatArray, others: Sequence[str]) -> Verdict:
        assert verdict.person is not None, "somebody is identified"
        doubt = self._doubt(verdict.person, probe, others)
        if doubt is None:
            return verdict
        return replace(
            verdict, status=Status.AMBIGUOUS, person=None, reasons=(doubt.reason,), doubt=doubt
        )

    def _doubt(self, person: Candidate, probe: FloatArray, others: Sequence[str]) -> Doubt | None:
        """The persons over whom `person` leads by too little, if there are any."""
        found = [self._rival(person, other, probe) for other in others]
        rivals = [one for one in found if one is not None and not one.is_out_led]
        if not rivals:
            return None
        nearer = any(one.lead <= -one.margin for one in rivals)
        margin = max(one.margin for one in rivals)
        return Doubt(
            _ranked([person, *(one.candidate for one in rivals)]),
            margin if np.isfinite(margin) else None,
            NEARER_TO_OTHER if nearer else MARGIN_TOO_SMALL,
        )

    def _rival(self, person: Candidate, other: str, probe: FloatArray) -> "_Rival | None":
        """None for a person without templates, or one who was deleted meanwhile."""
        name = self.record.name
        try:
            found = self.gallery.compare(name, other, probe, self.score)
            if found is None:
                return None
            alike = pair_similarity(self.gallery, name, person.face.person_id, other)
        except PersonNotFound:
            return None
        margin = pair_margin(alike, self.calibration)
        return _Rival(
            Candidate(found.face, found.similarity, None),
            person.similarity - found.similarity,
            np.inf if margin is None else margin,
        )


@dataclass(frozen=True, slots=True)
class _Rival:
    """A person declared different from another, whose lead over this one is `lead`; `margin` is
    what it should be, infinite where it is not known."""

    candidate: Candidate
    lead: float
    margin: float

    @property
    def is_out_led(self) -> bool:
        """Whether the lead decides for the other person."""
        return self.lead > 0 and self.lead >= self.margin


def _ranked(persons: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The most similar first, each with its lead over the next."""
    order = sorted(persons, key=lambda one: -one.similarity)
    following: list[Candidate | None] = [*order[1:], None]
    return tuple(
        replace(one, margin=None if after is None else one.similarity - after.similarity)
        for one, after in zip(order, following, strict=True)
    )
