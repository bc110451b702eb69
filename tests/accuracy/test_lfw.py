"""Verification on the 2,267 labelled pairs of LFW, each photo by its face nearest the centre."""

import pytest

from app.lab.evaluation.figures import PairsFigures
from app.lab.evaluation.labels import LabelledPairs

pytestmark = pytest.mark.accuracy


def test_the_pairs_are_those_the_figures_are_quoted_for(pairs: LabelledPairs) -> None:
    assert (len(pairs), int(pairs.same.sum()), len(pairs.photos)) == (2267, 1504, 3302)


def test_default_pack(default_verification: PairsFigures) -> None:
    """Measured: accuracy 0.9965, EER 0.0045, FNMR 0.0033 at FMR 1e-2."""
    report = default_verification
    assert report.failures == 0
    assert report.accuracy.mean >= 0.994
    assert report.eer.rate <= 0.008
    assert [point.fnmr.value <= 0.01 for point in report.points] == [True]


def test_default_pack_in_int8(int8_verification: PairsFigures) -> None:
    """Measured: accuracy 0.9960, EER 0.0049, FNMR 0.0027 at FMR 1e-2."""
    report = int8_verification
    assert report.failures == 0
    assert report.accuracy.mean >= 0.994
    assert report.eer.rate <= 0.008
    assert [point.fnmr.value <= 0.01 for point in report.points] == [True]


def test_version_1(version_1_verification: PairsFigures) -> None:
    """Measured: accuracy 0.9952, EER 0.0053, FNMR 0.0040 at FMR 1e-2."""
    report = version_1_verification
    assert report.failures == 0
    assert report.accuracy.mean >= 0.994
    assert report.eer.rate <= 0.008
    assert [point.fnmr.value <= 0.01 for point in report.points] == [True]


def test_scrfd_with_w600k_mbf(scrfd_verification: PairsFigures) -> None:
    """Measured: accuracy 0.9974, EER 0.0026, FNMR 0.0020 at FMR 1e-2."""
    report = scrfd_verification
    assert report.failures == 0
    assert report.accuracy.mean >= 0.995
    assert report.eer.rate <= 0.006
    assert [point.fnmr.value <= 0.008 for point in report.points] == [True]
