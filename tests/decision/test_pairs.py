"""Persons who were declared to be different: decided by a margin of their own, or not at all."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.decision.calibration import Calibration, Curve
from app.decision.calibrations import read_calibration
from app.decision.pairs import (
    MARGIN_TOO_SMALL,
    NEARER_TO_OTHER,
    PairRules,
    PairSimilarity,
    Spread,
    pair_margin,
    pair_similarity,
)
from app.decision.verdicts import Status, Verdict
from app.gallery.candidates import Candidate
from app.gallery.gallery import Gallery
from app.store.records import NewTemplate
from app.types import FloatArray
from tests.gallery.conftest import DIMENSION, open_gallery
from tests.writing import delete_person, enroll_person

MANY = 10_000  # templates: the likeness of the two is known
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """The default pack's: similarities of two photos of one person are 0.73 ± 0.11."""
    return read_calibration(ROOT / "models" / "default" / "calibration.json")


def at_angle(similarity: float) -> FloatArray:
    """A unit vector that is so similar to the first axis, in the plane of the first two."""
    vector = np.zeros(DIMENSION, np.float32)
    vector[:2] = similarity, np.sqrt(1 - similarity**2)
    return vector


ADA, TWIN, PLAIN = at_angle(1.0), at_angle(0.8), at_angle(0.1)


def towards(share: float) -> FloatArray:
    """A probe in the plane of the twins, `share` of the angle from Ada to her twin."""
    return at_angle(float(np.cos(share * np.arccos(0.8))))


@pytest.fixture
def gallery(tmp_path: Path) -> Iterator[Gallery]:
    """Ada, her twin, and somebody else."""
    gallery = open_gallery(tmp_path / "likeness.db")
    for person, vector in {"ada": ADA, "twin": TWIN, "plain": PLAIN}.items():
        enroll_person(gallery, "default", person, None, [NewTemplate(vector, person)])
    yield gallery
    gallery.close()


def rules(gallery: Gallery, calibration: Calibration | None) -> PairRules:
    return PairRules(gallery, gallery.store.collections.get("default"), calibration)


def nearest(gallery: Gallery, probe: FloatArray) -> Candidate:
    (row,) = gallery.identify("default", probe[np.newaxis], 1).rows
    return row[0]


def identified(gallery: Gallery, calibration: Calibration | None, probe: FloatArray) -> Verdict:
    """The verdict for a face that is as its nearest person at any threshold."""
    before = Verdict(Status.IDENTIFIED, nearest(gallery, probe))
    (after,) = rules(gallery, calibration).applied([before], [probe])
    return after


class TestMargin:
    def test_the_spread_is_that_of_the_mated_similarities(self) -> None:
        values = np.random.default_rng(0).normal(0.6, 0.1, 20_000)
        similarities = np.linspace(0, 1, 200)
        rates = np.searchsorted(np.sort(values), similarities) / len(values)
        columns = {"rate": tuple(rates), "low": tuple(rates), "high": tuple(rates)}
        spread = Spread.of(Curve(similarity=tuple(similarities), **columns))
        assert spread is not None
        assert spread.mean == pytest.approx(0.6, abs=0.005)
        assert spread.deviation == pytest.approx(0.1, abs=0.003)

    def test_near_copies_belong_to_the_spread(self) -> None:
        """Frames of a video, above the last similarity of a calibration's curve."""
        values = np.random.default_rng(0).normal(0.7, 0.05, 5_000)
        values = np.concatenate([values, np.full(5_000, 0.99)])
        similarities = np.linspace(-0.2, 0.98, 60)
        rates = tuple((values[:, np.newaxis] < similarities).mean(axis=0))
        spread = Spread.of(Curve(similarity=tuple(similarities), rate=rates, low=rates, high=rates))
        assert spread is not None
        assert spread.mean == pytest.approx(values.mean(), abs=0.005)
        assert spread.deviation == pytest.approx(values.std(), abs=0.003)

    def test_a_curve_that_does_not_rise_tells_nothing(self) -> None:
        flat = dict.fromkeys(("rate", "low", "high"), (0.5, 0.5))
        assert Spread.of(Curve(similarity=(0.0, 1.0), **flat)) is None

    def test_it_grows_with_the_likeness_of_the_two(self, calibration: Calibration) -> None:
        unlike, alike, twins = (
            pair_margin(PairSimilarity(s, MANY), calibration) for s in (0.2, 0.55, 0.7)
        )
        assert unlike == 0
        assert 0.03 < alike < 0.1 < twins < 0.2

    def test_it_is_larger_where_few_templates_tell_the_likeness(
        self, calibration: Calibration
    ) -> None:
        margins = [pair_margin(PairSimilarity(0.5, n), calibration) for n in (1, 2, 5, MANY)]
        assert margins == sorted(margins, reverse=True)
        assert margins[0] > margins[-1] + 0.1

    def test_it_does_not_fall_as_two_persons_become_more_similar(
        self, calibration: Calibration
    ) -> None:
        """So that one template that both have by mistake does not let any lead decide."""
        margins = [
            pair_margin(PairSimilarity(alike, 1), calibration)
            for alike in np.linspace(-1, 1, 50).tolist()
        ]
        known = [one for one in margins if one is not None]
        assert known == sorted(known)
        assert len(known) == 50
        assert 0.15 < known[-1] < 0.25

    def test_it_keeps_the_error_that_it_promises(self, calibration: Calibration) -> None:
        """Probes of the one whose leads are spread as the model says: 1 % lead for the other."""
        spread = Spread.of(calibration.fnmr)
        for alike in (0.6, 0.7):
            sizes = spread.deviation * np.sqrt(2 - 2 * alike)
            leads = np.random.default_rng(1).normal(alike - spread.mean, sizes, 100_000)
            margin = pair_margin(PairSimilarity(alike, MANY), calibration)
            assert np.mean(leads >= margin) == pytest.approx(0.01, rel=0.15)

    def test_without_mated_comparisons_there_is_none(self, calibration: Calibration) -> None:
        assert pair_margin(PairSimilarity(0.5, 1), None) is None
        without = calibration.model_copy(update={"fnmr": None})
        assert pair_margin(PairSimilarity(0.5, 1), without) is None


def test_what_is_not_declared_is_decided_as_before(
    gallery: Gallery, calibration: Calibration
) -> None:
    gallery.store.pairs.declare("default", "ada", "plain")
    verdict = identified(gallery, calibration, towards(0.45))
    assert (verdict.status, verdict.doubt) == (Status.IDENTIFIED, None)


@pytest.mark.parametrize(("share", "person"), [(0.0, "ada"), (1.0, "twin")])
def test_a_large_lead_decides(
    gallery: Gallery, calibration: Calibration, share: float, person: str
) -> None:
    gallery.store.pairs.declare("default", "ada", "twin")
    verdict = identified(gallery, calibration, towards(share))
    assert verdict.person is not None
    assert (verdict.status, verdict.person.face.person_id) == (Status.IDENTIFIED, person)


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6])
def test_a_small_lead_is_ambiguous_between_both(
    gallery: Gallery, calibration: Calibration, share: float
) -> None:
    gallery.store.pairs.declare("default", "twin", "ada")
    verdict = identified(gallery, calibration, towards(share))
    assert (verdict.status, verdict.person) == (Status.AMBIGUOUS, None)
    assert verdict.reasons == (MARGIN_TOO_SMALL,)
    assert verdict.doubt is not None
    first, second = verdict.doubt.between
    assert {first.face.person_id, second.face.person_id} == {"ada", "twin"}
    assert (first.face.person_id == "ada") or share >= 0.5
    assert first.margin == pytest.approx(first.similarity - second.similarity)
    assert verdict.doubt.margin == pytest.approx(pair_margin(PairSimilarity(0.8, 1), calibration))


def test_without_a_calibration_nothing_decides(gallery: Gallery) -> None:
    gallery.store.pairs.declare("default", "twin", "ada")
    verdict = identified(gallery, None, ADA)
    assert verdict.status is Status.AMBIGUOUS
    assert verdict.doubt is not None
    assert (verdict.doubt.margin, len(verdict.doubt.between)) == (None, 2)


def test_a_withdrawn_pair_is_decided_as_before(gallery: Gallery, calibration: Calibration) -> None:
    gallery.store.pairs.declare("default", "ada", "twin")
    gallery.store.pairs.withdraw("default", "ada", "twin")
    assert identified(gallery, calibration, towards(0.5)).status is Status.IDENTIFIED


def test_a_claim_that_is_the_other_s_face(gallery: Gallery, calibration: Calibration) -> None:
    gallery.store.pairs.declare("default", "ada", "twin")
    pairs = rules(gallery, calibration)
    ada = replace(nearest(gallery, ADA), similarity=float(TWIN @ ADA))
    doubt = pairs.doubt(ada, TWIN)
    assert doubt is not None
    assert (doubt.reason, doubt.between[0].face.person_id) == (NEARER_TO_OTHER, "twin")
    assert pairs.doubt(nearest(gallery, ADA), ADA) is None
    undecided = pairs.doubt(replace(ada, similarity=float(towards(0.5) @ ADA)), towards(0.5))
    assert undecided is not None
    assert undecided.reason == MARGIN_TOO_SMALL


def test_each_of_three_look_alikes_needs_the_lead(
    gallery: Gallery, calibration: Calibration
) -> None:
    third = at_angle(0.8) * np.array([1, -1, *[1] * (DIMENSION - 2)], np.float32)
    enroll_person(gallery, "default", "third", None, [NewTemplate(third, "third")])
    for other in ("twin", "third"):
        gallery.store.pairs.declare("default", "ada", other)
    between = {}
    for share, probe in (("left", towards(0.4)), ("middle", ADA)):
        doubt = identified(gallery, calibration, probe).doubt
        between[share] = doubt and [one.face.person_id for one in doubt.between]
    assert between == {"left": ["ada", "twin"], "middle": None}


def test_who_has_no_template_or_was_deleted_is_no_rival(
    gallery: Gallery, calibration: Calibration
) -> None:
    gallery.store.persons.create("default", "nobody yet", {})
    for other in ("nobody yet", "twin"):
        gallery.store.pairs.declare("default", "ada", other)
    ada = nearest(gallery, towards(0.4))
    assert rules(gallery, calibration).doubt(ada, towards(0.4)) is not None
    delete_person(gallery, "default", "twin")
    assert rules(gallery, calibration).doubt(ada, towards(0.4)) is None


def test_who_withdrew_the_consent_is_not_compared(
    gallery: Gallery, calibration: Calibration
) -> None:
    valid = {"consent": {"reference": "form 17"}}
    gallery.create_collection("staff", {}, {"consent_required": True})
    for person, vector in {"ada": ADA, "twin": TWIN}.items():
        enroll_person(gallery, "staff", person, valid, [NewTemplate(vector, person)])
    gallery.store.pairs.declare("staff", "ada", "twin")
    pairs = PairRules(gallery, gallery.store.collections.get("staff"), calibration)
    probe = towards(0.4)
    ada = gallery.identify("staff", probe[np.newaxis], 1).rows[0][0]
    assert pairs.doubt(ada, probe) is not None
    withdrawn = {"consent": {"reference": "form 17", "withdrawn": True}}
    gallery.store.persons.update("staff", "twin", withdrawn)
    assert pairs.doubt(ada, probe) is None
    before = Verdict(Status.IDENTIFIED, ada)
    assert pairs.applied([before], [probe]) == [before]


def test_deleted_between_two_reads(
    gallery: Gallery, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.store.pairs.declare("default", "ada", "twin")
    pairs, ada = rules(gallery, calibration), nearest(gallery, towards(0.4))
    known = gallery.store.pairs.counterparts(pairs.record, ["ada"])
    monkeypatch.setattr(gallery.store.pairs, "counterparts", lambda *_, **__: known)
    delete_person(gallery, "default", "twin")
    assert pairs.doubt(ada, towards(0.4)) is None


def test_the_likeness_of_two_people_is_that_of_their_most_similar_templates(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.decision.pairs.TEMPLATES_AT_ONCE", 2)
    more = [NewTemplate(at_angle(s), str(s)) for s in (0.0, -0.5, 0.9, 0.2)]
    enroll_person(gallery, "default", "twin", None, more)
    for one, other in (("ada", "twin"), ("twin", "ada")):
        found = pair_similarity(gallery, "default", one, other)
        assert (found.similarity, found.templates) == (pytest.approx(0.9), 1)
    gallery.store.persons.create("default", "nobody yet", {})
    assert pair_similarity(gallery, "default", "ada", "nobody yet") == PairSimilarity(-1, 0)
