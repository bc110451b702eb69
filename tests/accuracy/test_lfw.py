"""Verification on the 2,267 labelled pairs of LFW, each photo by its face nearest the centre."""

import pytest

from app.evaluation.figures import PairsFigures
from app.evaluation.labels import LabelledPairs

pytestmark = pytest.mark.accuracy


def test_the_pairs_are_those_the_figures_are_quoted_for(pairs: LabelledPairs) -> None:
    assert (len(pairs), int(pairs.same.sum()), len(pairs.photos)) == (2267, 1504, 3302)


def test_default_pack(default_verification: PairsFigures) -> None:
    """Measured: accuracy 0.9952, EER 0.0053, TAR 0.9960 at FAR 1e-2 and 0.9934 at 1e-3."""
    report = default_verification
    assert report.failures == 0
    assert report.accuracy.mean >= 0.994
    assert report.eer.rate <= 0.008
    assert [point.tar >= 0.99 for point in report.at_far] == [True, True]


def test_scrfd_with_w600k_mbf(scrfd_verification: PairsFigures) -> None:
    """Measured: accuracy 0.9974, EER 0.0026, TAR 0.9980 at FAR 1e-2 and 0.9953 at 1e-3."""
    report = scrfd_verification
    assert report.failures == 0
    assert report.accuracy.mean >= 0.995
    assert report.eer.rate <= 0.006
    assert [point.tar >= 0.992 for point in report.at_far] == [True, True]
