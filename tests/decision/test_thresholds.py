"""Which threshold decides: the call, the collection, the default, and the calibration it is based
on."""

from contextlib import suppress
from pathlib import Path

import pytest

from app.decision.calibration import Calibration
from app.decision.calibrations import read_calibration
from app.decision.policy import CollectionPolicy
from app.decision.thresholds import (
    ONE_COMPARISON,
    WIDEST_INTERVAL,
    CalibrationChain,
    ThresholdRequest,
    ThresholdSource,
    identification_threshold,
    verification_threshold,
)
from app.errors import NotCalibrated, RateOutOfReach
from app.index.person_scores import PersonScore
from app.index.port import GallerySize
from tests.decision.test_calibration import CONTENT, SHARED, calibration

PACK = calibration()
OWN = calibration(source={**CONTENT["source"], "kind": "collection"}, template_exponent=0.9)
DEFAULT = read_calibration(Path("models/default/calibration.json"))
HUNDRED = GallerySize(100, 100)
DOMAIN = {"shared": SHARED, "likeness": 0.2}
ONE = GallerySize(1, 1)
PLAIN = CollectionPolicy()


def chain(*calibrations: object) -> CalibrationChain:
    return CalibrationChain(list(calibrations), 0.53)  # type: ignore[arg-type]


def test_the_default_is_one_false_identification_in_a_hundred_at_any_size() -> None:
    small, large = (
        identification_threshold(ThresholdRequest(), PLAIN, chain(PACK), GallerySize(n, n))
        for n in (10, 100)
    )
    assert (small.source, small.target) == (ThresholdSource.DEFAULT, 0.01)
    assert small.calibration is PACK
    assert (small.threshold, large.threshold) == pytest.approx((0.3, 0.4), abs=0.003)


def test_the_default_of_a_verification_is_one_impostor_in_ten_thousand() -> None:
    rule = verification_threshold(ThresholdRequest(), PLAIN, chain(PACK), ONE, HUNDRED)
    assert (rule.source, rule.target) == (ThresholdSource.DEFAULT, 1e-4)
    assert rule.threshold == pytest.approx(0.4)


def test_several_templates_give_an_impostor_several_chances() -> None:
    one, five = (
        verification_threshold(
            ThresholdRequest(), PLAIN, chain(PACK), GallerySize(1, m), HUNDRED
        ).threshold
        for m in (1, 5)
    )
    assert five > one


def test_a_threshold_in_the_call_decides() -> None:
    rule = identification_threshold(ThresholdRequest(threshold=0.7), PLAIN, chain(PACK), HUNDRED)
    assert (rule.threshold, rule.source, rule.target) == (0.7, ThresholdSource.REQUEST, None)
    assert rule.calibration is PACK  # still says what that threshold means


def test_a_target_in_the_call_decides() -> None:
    fpir = identification_threshold(ThresholdRequest(target_fpir=0.1), PLAIN, chain(PACK), HUNDRED)
    fmr = identification_threshold(ThresholdRequest(target_fmr=1e-3), PLAIN, chain(PACK), HUNDRED)
    assert (fpir.source, fmr.source) == (ThresholdSource.REQUEST,) * 2
    assert (fpir.threshold, fmr.threshold) == pytest.approx((0.3, 0.3), abs=0.01)


def test_verification_at_a_target_of_searches_uses_their_threshold() -> None:
    ask = ThresholdRequest(target_fpir=0.1)
    verified = verification_threshold(ask, PLAIN, chain(PACK), ONE, HUNDRED)
    assert (
        verified.threshold == identification_threshold(ask, PLAIN, chain(PACK), HUNDRED).threshold
    )


def test_the_collection_s_policy_comes_before_the_default() -> None:
    policy = CollectionPolicy(target_fpir=0.1)
    rule = identification_threshold(ThresholdRequest(), policy, chain(PACK), HUNDRED)
    assert (rule.source, rule.target) == (ThresholdSource.COLLECTION, 0.1)
    fixed = CollectionPolicy(threshold=0.6)
    rule = identification_threshold(ThresholdRequest(), fixed, chain(PACK), HUNDRED)
    assert (rule.source, rule.threshold) == (ThresholdSource.COLLECTION, 0.6)
    rule = identification_threshold(ThresholdRequest(target_fpir=0.1), fixed, chain(PACK), HUNDRED)
    assert rule.source is ThresholdSource.REQUEST


def test_the_collection_s_own_calibration_is_preferred() -> None:
    rule = identification_threshold(ThresholdRequest(), PLAIN, chain(OWN, PACK), HUNDRED)
    assert rule.calibration is OWN


def test_the_pack_s_serves_where_the_collection_s_does_not_reach() -> None:
    short = {key: CONTENT["fmr"][key][:3] for key in ("similarity", "rate", "low", "high")}
    own = calibration(fmr={**short, "variation": [0.0] * 3, "measured": 3})
    rule = identification_threshold(
        ThresholdRequest(target_fmr=1e-4), PLAIN, chain(own, PACK), HUNDRED
    )
    assert rule.calibration is PACK


def uncertain(factor: float) -> Calibration:
    """A collection's own, whose rates are known within this factor in both directions."""
    rates = CONTENT["fmr"]["rate"]
    low, high = [rate / factor for rate in rates], [min(1.0, rate * factor) for rate in rates]
    return calibration(fmr={**CONTENT["fmr"], "low": low, "high": high})


def test_the_pack_s_serves_where_the_collection_s_is_only_a_guess() -> None:
    """One of 100 people follows the tail for three decades beyond its pairs, and is wrong."""
    vague, clear = uncertain(6), uncertain(4)
    for request in (ThresholdRequest(target_fpir=0.1), ThresholdRequest(target_fmr=1e-3)):
        by_vague, by_clear = (
            identification_threshold(request, PLAIN, chain(own, PACK), HUNDRED)
            for own in (vague, clear)
        )
        assert by_vague.calibration is PACK
        assert by_clear.calibration is clear
    empty = identification_threshold(request, PLAIN, chain(vague, PACK), GallerySize(0, 0))
    assert empty.calibration is PACK


@pytest.mark.parametrize("persons", [1, 260, 100_000])
@pytest.mark.parametrize("factors", [(2.0, 2.0), (1.05, 1.2), (1.2, 1.05), (1.3, 1.3)])
@pytest.mark.parametrize("alike", [-0.1, 0.0, 0.1, 0.3])
def test_a_lower_target_never_has_a_lower_threshold(
    alike: float, factors: tuple[float, float], persons: int
) -> None:
    """Also where the decision passes from one calibration to another, whose people are more or less
    alike, and where none knows its rates well. The intervals grow by a factor with each row."""
    own, pack = (
        growing(factor, shift) for factor, shift in zip(factors, (alike, 0.0), strict=True)
    )
    size = GallerySize(persons, persons)
    targets = [0.5 * 0.9**i for i in range(140)]
    for makes in (
        lambda target: (ThresholdRequest(target_fmr=target), PLAIN),
        lambda target: (ThresholdRequest(target_fpir=target), PLAIN),
        lambda target: (ThresholdRequest(), CollectionPolicy(target_fpir=target)),
    ):
        found = []
        for target in targets:
            with suppress(RateOutOfReach):
                found.append(identification_threshold(*makes(target), chain(own, pack), size))
        assert len(found) > 1
        thresholds = [one.threshold for one in found]
        assert thresholds == sorted(thresholds)


def growing(factor: float, shift: float) -> Calibration:
    """The default pack's curve, shifted, whose intervals grow by a factor with each row."""
    curve = DEFAULT.fmr
    rows = [(rate, factor**row) for row, rate in enumerate(curve.rate)]
    moved = curve.model_copy(update={
        "similarity": tuple(one + shift for one in curve.similarity),
        "low": tuple(rate / width for rate, width in rows),
        "high": tuple(min(1.0, rate * width) for rate, width in rows),
    })  # fmt: skip
    return DEFAULT.changed(domain=None, fmr=moved)


def test_a_lift_is_not_added_to_what_another_calibration_knows() -> None:
    """The collection's own scores have it already."""
    curve = {"similarity": [0.25, 0.35, 0.45, 0.55, 0.65], "low": [9e-2, 9e-3, 8e-4, 6e-6, 1e-7]}
    own, pack = calibration(fmr={**CONTENT["fmr"], **curve}), calibration(domain=DOMAIN)
    known = own.known_until(ONE_COMPARISON, WIDEST_INTERVAL)
    assert 0.45 < known < 0.55
    for likeness, threshold in ((0.2, known), (0.25, known), (0.5, 0.4 + 0.225)):
        request = ThresholdRequest(target_fmr=1e-4)
        found = identification_threshold(
            request, PLAIN, chain(own, pack), HUNDRED, likeness=likeness
        )
        assert found.calibration is pack
        assert found.threshold == pytest.approx(threshold)


def test_of_two_guesses_the_better_one_serves() -> None:
    own, worse = uncertain(6), uncertain(8)
    for request in (ThresholdRequest(target_fpir=0.1), ThresholdRequest()):
        found = identification_threshold(request, PLAIN, chain(own, worse), HUNDRED)
        assert found.calibration is own
        found = identification_threshold(request, PLAIN, chain(worse, own), HUNDRED)
        assert found.calibration is own
    assert identification_threshold(request, PLAIN, chain(own), HUNDRED).calibration is own


@pytest.mark.parametrize("own_reaches_further", [True, False])
def test_a_refusal_names_the_lowest_rate_that_is_supported(own_reaches_further: bool) -> None:
    short = {key: CONTENT["fmr"][key][:3] for key in ("similarity", "rate", "low", "high")}
    near = calibration(fmr={**short, "variation": [0.0] * 3, "measured": 3})
    calibrations = chain(PACK, near) if own_reaches_further else chain(near, PACK)
    with pytest.raises(RateOutOfReach, match=PACK.calibration_id) as caught:
        identification_threshold(ThresholdRequest(target_fpir=1e-6), PLAIN, calibrations, HUNDRED)
    assert caught.value.extra["lowest"] == PACK.lowest_fpir(HUNDRED)


def test_an_unreachable_target_in_the_call_is_refused() -> None:
    with pytest.raises(RateOutOfReach, match="target_fpir=1e-06"):
        identification_threshold(
            ThresholdRequest(target_fpir=1e-6), PLAIN, chain(OWN, PACK), HUNDRED
        )


def test_an_unreachable_default_gets_the_strictest_threshold_there_is() -> None:
    million = GallerySize(1_000_000, 1_000_000)
    rule = identification_threshold(ThresholdRequest(), PLAIN, chain(PACK), million)
    assert (rule.threshold, rule.source) == (0.5, ThresholdSource.DEFAULT)
    assert rule.calibration is not None
    fpir = rule.calibration.fpir_at(rule.threshold, million)
    assert fpir is not None
    assert fpir.value > 0.9  # and the answer says so


def test_without_any_calibration_the_pack_s_constant_serves() -> None:
    rule = identification_threshold(ThresholdRequest(), PLAIN, chain(), HUNDRED)
    assert (rule.threshold, rule.source) == (0.53, ThresholdSource.PACK)
    assert rule.calibration is None
    with pytest.raises(NotCalibrated, match="Give a threshold"):
        identification_threshold(ThresholdRequest(target_fpir=0.01), PLAIN, chain(), HUNDRED)
    with pytest.raises(NotCalibrated):
        verification_threshold(ThresholdRequest(target_fmr=0.01), PLAIN, chain(), ONE, HUNDRED)


class TestLift:
    """Galleries whose people are more alike than those of the calibration."""

    ALIKE = calibration(domain=DOMAIN)

    def threshold(self, likeness: float | None, size: GallerySize = HUNDRED) -> float:
        return identification_threshold(
            ThresholdRequest(), PLAIN, chain(self.ALIKE), size, likeness=likeness
        ).threshold

    def test_the_threshold_rises_by_three_quarters_of_the_excess(self) -> None:
        base = self.threshold(None)
        assert self.threshold(0.2) == self.threshold(0.1) == base
        assert self.threshold(0.3) == pytest.approx(base + 0.075)

    def test_in_a_small_gallery_by_all_of_it(self) -> None:
        small = GallerySize(99, 99)
        base = self.threshold(None, small)
        assert self.threshold(0.3, small) == pytest.approx(base + 0.1)

    def test_the_answer_s_rates_are_those_of_the_unlifted_threshold(self) -> None:
        rule = identification_threshold(
            ThresholdRequest(), PLAIN, chain(self.ALIKE), HUNDRED, likeness=0.3
        )
        assert rule.lift == pytest.approx(0.075)
        fpir = self.ALIKE.fpir_at(rule.unshifted(rule.threshold), HUNDRED)
        assert fpir is not None
        assert fpir.value == pytest.approx(0.01, rel=0.01)

    def test_a_fixed_threshold_stays_and_its_rates_do_not(self) -> None:
        rule = identification_threshold(
            ThresholdRequest(threshold=0.4), PLAIN, chain(self.ALIKE), HUNDRED, likeness=0.3
        )
        assert (rule.threshold, rule.lift) == (0.4, 0.0)
        assert rule.unshifted(0.4) == pytest.approx(0.325)

    def test_a_verification_is_lifted_only_for_a_rate_of_searches(self) -> None:
        plain = verification_threshold(
            ThresholdRequest(), PLAIN, chain(self.ALIKE), ONE, HUNDRED, likeness=0.3
        )
        searching = verification_threshold(
            ThresholdRequest(target_fpir=0.01), PLAIN, chain(self.ALIKE), ONE, HUNDRED, likeness=0.3
        )
        assert plain.lift == 0
        assert searching.threshold == self.threshold(0.3)

    def test_without_a_domain_nothing_is_lifted(self) -> None:
        rule = identification_threshold(
            ThresholdRequest(), PLAIN, chain(PACK), HUNDRED, likeness=0.9
        )
        assert rule == identification_threshold(ThresholdRequest(), PLAIN, chain(PACK), HUNDRED)

    def test_no_threshold_exceeds_one(self) -> None:
        assert self.threshold(1.0) <= 1.0


class TestScores:
    """Of persons with several templates."""

    FUSED = CollectionPolicy(score=PersonScore.FUSED)
    KNOWING = calibration(score_exponents={"centroid": 0.2, "fused": 0.4})

    def chosen(self, policy: CollectionPolicy, *found: Calibration) -> CalibrationChain:
        return CalibrationChain.of(found, 0.53, policy)

    def test_a_calibration_says_which_scores_it_was_made_for(self) -> None:
        assert self.chosen(self.FUSED, OWN, self.KNOWING).calibrations == [self.KNOWING]
        assert self.chosen(self.FUSED, OWN, self.KNOWING).score is PersonScore.FUSED
        best = CollectionPolicy(score=PersonScore.BEST)
        assert list(self.chosen(best, OWN, self.KNOWING).calibrations) == [OWN, self.KNOWING]

    def test_without_one_the_best_template_decides(self) -> None:
        found = self.chosen(self.FUSED, OWN, PACK)
        assert (list(found.calibrations), found.score) == ([OWN, PACK], PersonScore.BEST)
        assert self.chosen(self.FUSED).score is PersonScore.BEST

    def test_a_fixed_threshold_needs_none(self) -> None:
        policy = CollectionPolicy(score=PersonScore.FUSED, threshold=0.5)
        found = self.chosen(policy, PACK)
        rule = identification_threshold(ThresholdRequest(), policy, found, HUNDRED)
        assert (rule.score, rule.threshold, rule.calibration) == (PersonScore.FUSED, 0.5, None)
        with pytest.raises(NotCalibrated, match="a calibration for score=fused, and neither"):
            identification_threshold(ThresholdRequest(target_fpir=0.01), policy, found, HUNDRED)

    def test_a_default_is_never_a_reason_to_pass_over_a_calibration(self) -> None:
        found = self.chosen(PLAIN, OWN, self.KNOWING)
        assert next(iter(found.calibrations)) is OWN

    def test_the_threshold_is_that_of_the_score(self) -> None:
        size = GallerySize(100, 400)
        rules = {
            score: identification_threshold(
                ThresholdRequest(),
                CollectionPolicy(score=score),
                self.chosen(CollectionPolicy(score=score), self.KNOWING),
                size,
            )
            for score in PersonScore
        }
        assert [rule.score for rule in rules.values()] == list(PersonScore)
        best, centroid, fused = (rule.threshold for rule in rules.values())
        assert centroid < fused < best
        people = 100 * 4**0.4
        alone = self.KNOWING.threshold_at(0.01, GallerySize(round(people), round(people)))
        assert fused == pytest.approx(alone, abs=1e-3)

    def test_one_template_a_person_has_one_threshold(self) -> None:
        thresholds = {
            self.KNOWING.threshold_at(0.01, HUNDRED.scored_by(score)) for score in PersonScore
        }
        assert len(thresholds) == 1

    def test_the_claimed_person_s_templates_count_by_the_score(self) -> None:
        def threshold(score: PersonScore) -> float:
            policy = CollectionPolicy(score=score)
            claimed = GallerySize.of_person(5, 4.0)
            return verification_threshold(
                ThresholdRequest(), policy, self.chosen(policy, self.KNOWING), claimed, HUNDRED
            ).threshold

        assert threshold(PersonScore.FUSED) < threshold(PersonScore.BEST)
