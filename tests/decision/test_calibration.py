"""Reading a calibration: rates, thresholds, refusals, and what it is bound to."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.decision.calibration import MAX_HELD, Calibration
from app.decision.calibrations import pack_calibration, pack_orientation, read_calibration
from app.decision.rates import Rate
from app.decision.thresholds import ONE_COMPARISON
from app.errors import CalibrationMismatch, PackError, RateOutOfReach
from app.faces.orientation import OrientationLimits
from app.index.port import GallerySize
from app.inference.pack_spec import ModelPack

CONTENT: dict[str, Any] = {
    "schema": 1,
    "embedding_space": "es-test",
    "precision": "float32",
    "created_at": "2026-11-24T00:00:00Z",
    "source": {
        "kind": "photos",
        "name": "made up",
        "persons": 1000,
        "faces": 1500,
        "person_pairs": 499500,
        "mated_persons": 500,
        "digest": "0" * 64,
        "left_out": 0,
    },
    "fmr": {
        "similarity": [0.1, 0.2, 0.3, 0.4, 0.5],
        "rate": [1e-1, 1e-2, 1e-3, 1e-4, 1e-5],
        "low": [9e-2, 9e-3, 8e-4, 6e-5, 1e-6],
        "high": [1.1e-1, 1.1e-2, 1.2e-3, 1.6e-4, 1e-4],
        "variation": [0.0, 0.0, 0.0, 0.0, 0.0],
        "measured": 4,
    },
    "fnmr": {"similarity": [0.0, 0.5], "rate": [0.0, 0.1], "low": [0.0, 0.05], "high": [0.01, 0.2]},
    "template_exponent": 0.8,
}

SHARED: dict[str, Any] = {
    "direction": [1.0, 0.0],
    "weight": 1.5,
    "source": "made up",
    "faces": 1,
    "degradations": ["blur"],
    "digest": "0" * 64,
}


def calibration(**changes: Any) -> Calibration:
    return Calibration.model_validate({**CONTENT, **changes})


def test_rates_are_interpolated_in_their_logarithm() -> None:
    rate = calibration().fmr_at(0.25)
    assert rate is not None
    assert rate.value == pytest.approx(10**-2.5)
    assert not rate.extrapolated


def test_an_upper_limit_holds_at_every_higher_similarity() -> None:
    """The FMR falls, but what the tail knows of it gets less, so the limits of its fit may rise."""
    curve = {**CONTENT["fmr"], "high": [1.1e-1, 1.1e-2, 1.2e-3, 1.6e-4, 9e-4]}
    made = calibration(fmr=curve)
    size = GallerySize(10, 10)
    for similarity in (0.4, 0.45, 0.5):
        fmr, fpir = made.fmr_at(similarity), made.fpir_at(similarity, size)
        assert fmr is not None
        assert fpir is not None
        assert fmr.high == pytest.approx(1.6e-4)
        assert fpir.high == pytest.approx(1 - (1 - 1.6e-4) ** 10)
    assert made.fmr.upper[-1] == 1.6e-4
    assert made.fpir_at_end(size).high == pytest.approx(1 - (1 - 1.6e-4) ** 10)


def test_the_extrapolated_part_says_so() -> None:
    at_the_end, beyond = (calibration().fmr_at(similarity) for similarity in (0.4, 0.41))
    assert at_the_end is not None
    assert beyond is not None
    assert (at_the_end.extrapolated, beyond.extrapolated) == (False, True)


def test_beyond_its_end_nothing_is_claimed() -> None:
    assert calibration().fmr_at(0.51) is None
    below = calibration().fmr_at(-0.9)
    assert below is not None
    assert below.value == 1.0


def test_thresholds_invert_rates() -> None:
    for target in (0.05, 1e-2, 3e-4, 1e-5):
        threshold = calibration().threshold_at(target, ONE_COMPARISON)
        rate = calibration().fmr_at(threshold)
        assert rate is not None
        assert rate.value == pytest.approx(target, rel=1e-3)


def test_a_rate_out_of_reach_is_refused_with_the_lowest_there_is() -> None:
    with pytest.raises(RateOutOfReach, match="target_fmr=1e-06") as caught:
        calibration().threshold_at(1e-6, ONE_COMPARISON, "target_fmr")
    assert caught.value.extra["lowest"] == pytest.approx(1e-5)
    # A tenth of the rate needs ten times as many pairs of people: 1,000 people times √10.
    assert caught.value.extra["persons_needed"] == 3200
    advice = "on about 3,200 people with likeness evaluate"  # more than a collection is sampled for
    assert advice in caught.value.detail
    assert "about 3,200 people" in caught.value.detail


@pytest.mark.parametrize("target", [1e-60, 5e-324])
def test_for_a_rate_near_0_more_people_are_needed_than_there_are(target: float) -> None:
    with pytest.raises(RateOutOfReach, match="about 10,000,000,000 people") as caught:
        calibration().threshold_at(target, ONE_COMPARISON)
    assert caught.value.extra["persons_needed"] == 10**10


def test_a_lax_target_gets_the_lowest_threshold() -> None:
    assert calibration().threshold_at(0.5, ONE_COMPARISON) == 0.1


def test_the_threshold_follows_the_size_of_the_gallery() -> None:
    sizes = [1, 10, 100, 1000]
    thresholds = [calibration().threshold_at(0.01, GallerySize(n, n)) for n in sizes]
    # A hundredth of all searches: ten times as many people need a tenth of the FMR.
    assert thresholds == pytest.approx([0.2, 0.3, 0.4, 0.5], abs=0.003)


def test_fpir_is_that_of_independent_comparisons_where_probes_are_alike() -> None:
    fpir = fpir_at(calibration(), 0.3, GallerySize(100, 100)).value
    assert fpir == pytest.approx(1 - (1 - 1e-3) ** 100, rel=1e-6)


def test_rates_are_kept_by_the_size_of_the_gallery() -> None:
    kept, sizes = calibration(), [GallerySize(n, n) for n in range(1, MAX_HELD)]
    for _ in range(2):
        for size in sizes:
            assert kept.fpir_at(0.3, size) == calibration().fpir_at(0.3, size)
    assert 0 < len(kept.held_rates) <= MAX_HELD


def test_in_an_empty_gallery_nobody_is_found() -> None:
    assert fpir_at(calibration(), 0.3, GallerySize(0, 0)) == Rate(0.0, 0.0, 0.0)


def test_unlike_probes_share_their_false_matches() -> None:
    varied = {**CONTENT["fmr"], "variation": [2.0] * 5}
    size = GallerySize(1000, 1000)
    unlike, alike = (fpir_at(one, 0.3, size) for one in (calibration(fmr=varied), calibration()))
    assert unlike.value < alike.value


def test_more_templates_are_more_chances_but_fewer_than_strangers_would_be() -> None:
    one, four, strangers = (
        fpir_at(calibration(), 0.4, size).value
        for size in (GallerySize(10, 10), GallerySize(10, 40), GallerySize(40, 40))
    )
    assert one < four < strangers
    assert four / one == pytest.approx(4**0.8, rel=0.01)


def test_one_heavy_person_does_not_weigh_as_if_everybody_were() -> None:
    light = GallerySize(50, 50)
    heavy = GallerySize(51, 2_050, ((1.0, 50), (2_000.0, 1)))
    copies = GallerySize(51, 2_050, ((1.0, 50), (1.2, 1)))
    comparisons = calibration().comparisons
    assert comparisons(light) == 50
    assert comparisons(heavy) == pytest.approx(50 + 2_000**0.8)
    assert comparisons(copies) == pytest.approx(50 + 1.2**0.8)
    assert comparisons(GallerySize(51, 2_050)) > 2 * comparisons(heavy)


def test_a_template_more_counts_as_a_person_more_at_most() -> None:
    size = GallerySize(2, 5, ((1.0, 1), (3.5, 1)))
    for person in (False, True):
        more = size.one_more(person=person)
        assert (more.persons, more.templates) == (2 + person, 6)
        assert calibration().comparisons(more) == calibration().comparisons(size) + 1


def test_the_interval_of_fpir_is_that_of_fmr() -> None:
    size = GallerySize(100, 100)
    fpir, low, high = (1 - (1 - rate) ** 100 for rate in (1e-4, 6e-5, 1.6e-4))
    rate = fpir_at(calibration(), 0.4, size)
    assert (rate.value, rate.low, rate.high) == pytest.approx((fpir, low, high))
    assert not rate.extrapolated
    assert fpir_at(calibration(), 0.45, size).extrapolated


def test_beyond_its_end_no_fpir_is_claimed_either() -> None:
    size = GallerySize(100, 100)
    assert calibration().fpir_at(0.51, size) is None
    end = calibration().fpir_at_end(size)
    assert end == fpir_at(calibration(), 0.5, size)
    assert end.high == pytest.approx(1e-2, rel=0.01)
    assert fpir_at(calibration(), -0.9, size).value == 1.0


def fpir_at(one: Calibration, similarity: float, size: GallerySize) -> Rate:
    rate = one.fpir_at(similarity, size)
    assert rate is not None
    return rate


def test_fnmr() -> None:
    rate = calibration().fnmr_at(0.5)
    assert rate is not None
    assert rate.value == pytest.approx(0.1)
    assert calibration(fnmr=None).fnmr_at(0.5) is None


def test_it_is_bound_to_space_and_precision() -> None:
    bound = calibration()
    assert bound.require("es-test", "float32") is bound
    with pytest.raises(CalibrationMismatch, match="es-other"):
        bound.require("es-other", "float32")
    with pytest.raises(CalibrationMismatch, match="float16"):
        bound.require("es-test", "float16")


def test_the_id_is_that_of_the_content() -> None:
    assert calibration().calibration_id == calibration().calibration_id
    assert calibration(template_exponent=0.7).calibration_id != calibration().calibration_id
    kept = Calibration.model_validate_json(json.dumps(calibration().content()))
    assert kept.calibration_id == calibration().calibration_id
    assert kept.created_at == datetime(2026, 11, 24, tzinfo=UTC)


@pytest.mark.parametrize(
    "fmr",
    [
        {**CONTENT["fmr"], "rate": [0.1]},
        {**CONTENT["fmr"], "similarity": [0.5, 0.4, 0.3, 0.2, 0.1]},
        {**CONTENT["fmr"], "similarity": [0.1, 0.2, 0.3, 0.4, 1.1]},
        {**CONTENT["fmr"], "similarity": [-1.1, 0.2, 0.3, 0.4, 0.5]},
        {**CONTENT["fmr"], "rate": [1e-1, 1e-2, 1e-3, 1e-4, float("nan")]},
        {**CONTENT["fmr"], "rate": [1e-1, 1e-2, 1e-3, 1e-4, 1e-3]},
        {**CONTENT["fmr"], "rate": [2.0, 1e-2, 1e-3, 1e-4, 1e-5]},
        {**CONTENT["fmr"], "low": [-1e-1, 9e-3, 8e-4, 6e-5, 1e-6]},
        {**CONTENT["fmr"], "variation": [0.0]},
        {**CONTENT["fmr"], "variation": [-1.0, 0.0, 0.0, 0.0, 0.0]},
        {**CONTENT["fmr"], "measured": 6},
    ],
)
def test_a_broken_curve_is_refused(fmr: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="fmr"):
        calibration(fmr=fmr)


class TestFile:
    def test_a_pack_without_one(self, tmp_path: Path) -> None:
        assert pack_calibration(tmp_path, "es-test", "float32") is None

    def test_a_pack_with_one(self, tmp_path: Path) -> None:
        (tmp_path / "calibration.json").write_text(json.dumps(CONTENT))
        found = pack_calibration(tmp_path, "es-test", "float32")
        assert found is not None
        assert found.calibration_id == calibration().calibration_id

    def test_one_of_another_recogniser_stops_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "calibration.json").write_text(json.dumps(CONTENT))
        with pytest.raises(PackError, match=r"es-test .* es-other"):
            pack_calibration(tmp_path, "es-other", "float32")

    def test_a_direction_of_another_dimension_stops_the_start(self, tmp_path: Path) -> None:
        content = {**CONTENT, "domain": {"shared": SHARED, "likeness": 0.2}}
        (tmp_path / "calibration.json").write_text(json.dumps(content))
        assert pack_calibration(tmp_path, "es-test", "float32", 2) is not None
        with pytest.raises(PackError, match=r"2 numbers.* 192"):
            pack_calibration(tmp_path, "es-test", "float32", 192)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", "\x00"])
    def test_a_broken_one_stops_the_start(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "calibration.json"
        path.write_text(text)
        with pytest.raises(PackError, match="is not a calibration"):
            read_calibration(path)

    def test_a_huge_file_is_not_read_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "calibration.json"
        path.touch()
        os.truncate(path, 64 << 20)
        with pytest.raises(PackError, match="it has more than 16,777,216 bytes"):
            read_calibration(path)

    @pytest.mark.parametrize("direction", [[0.0, 0.0], [1e-300, 0.0], [1e308, 1e308], [2.0, 0.0]])
    def test_a_direction_that_is_no_unit_vector_stops_the_start(
        self, tmp_path: Path, direction: list[float]
    ) -> None:
        """Its scores would be no numbers, or of another weight; the sentence says where it is."""
        shared = {**SHARED, "direction": direction}
        content = {**CONTENT, "domain": {"shared": shared, "likeness": 0.2}}
        path = tmp_path / "calibration.json"
        path.write_text(json.dumps(content))
        with pytest.raises(PackError, match=r"domain\.shared: .*must have length 1"):
            read_calibration(path)


ORIENTATION: dict[str, Any] = {
    "detector": "0" * 64,
    "score_below": 0.75,
    "roll_above": 30.0,
    "source": "made up",
    "photos": 1000,
    "looked_again": 0.002,
    "turned": 300,
    "righted": 0.99,
}


class TestOrientation:
    """Limits for turned photos, which belong to one detector."""

    def write(self, pack: ModelPack, folder: Path, **changes: Any) -> ModelPack:
        content = {**CONTENT, "embedding_space": pack.embedding_space, **changes}
        (folder / "calibration.json").write_text(json.dumps(content))
        return pack.model_copy(update={"folder": folder})

    def test_the_default_pack_has_them(self, pack: ModelPack) -> None:
        assert pack_orientation(pack, "float32") == OrientationLimits(0.75, 30.0)

    def test_a_calibration_without_them(self, pack: ModelPack, tmp_path: Path) -> None:
        assert pack_orientation(self.write(pack, tmp_path), "float32") is None
        assert "orientation" not in calibration().content()  # so that it keeps its id
        assert pack_orientation(pack.model_copy(update={"folder": tmp_path / "x"}), "f") is None

    def test_they_are_part_of_the_content(self) -> None:
        with_limits = calibration(orientation=ORIENTATION)
        assert with_limits.calibration_id != calibration().calibration_id
        assert Calibration.model_validate(with_limits.content()) == with_limits

    def test_those_of_another_detector_are_not_used(self, pack: ModelPack, tmp_path: Path) -> None:
        mine = {**ORIENTATION, "detector": pack.detector.sha256}
        assert pack_orientation(self.write(pack, tmp_path, orientation=mine), "float32")
        other = self.write(pack, tmp_path, orientation=ORIENTATION)
        assert pack_orientation(other, "float32") is None

    @pytest.mark.parametrize(
        "changes", [{"score_below": 1.5}, {"roll_above": 0}, {"detector": "x"}, {"more": 1}]
    )
    def test_broken_ones_are_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="orientation"):
            calibration(orientation={**ORIENTATION, **changes})
