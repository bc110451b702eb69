"""The comparisons themselves: they must fail for every way to be wrong."""

import numpy as np
import pytest

from app.lab.export import parity
from app.lab.export.parity import ParityError


def _vectors() -> parity.FloatArray:
    return np.random.default_rng(5).normal(0, 1, (20, 192)).astype(np.float32)


def test_cosines() -> None:
    a = np.array([[1, 0], [1, 0], [1, 1]], np.float32)
    b = np.array([[2, 0], [0, 3], [-1, -1]], np.float32)
    np.testing.assert_allclose(parity.cosines(a, b), [1, 0, -1], atol=1e-12)


def test_equal_vectors_agree() -> None:
    found = parity._agreement(_vectors(), _vectors())
    assert found.faces == 20
    assert found.minimum_cosine == pytest.approx(1)


def test_one_turned_vector_is_enough_to_fail() -> None:
    actual = _vectors()
    actual[7] += np.random.default_rng(6).normal(0, 0.01, 192).astype(np.float32)
    with pytest.raises(ParityError, match="cosine"):
        parity._agreement(actual, _vectors())


def test_another_length_fails() -> None:
    with pytest.raises(ParityError, match="length"):
        parity._agreement(_vectors() * np.float32(1.001), _vectors())


def test_nan_fails() -> None:
    actual = _vectors()
    actual[3, 4] = np.nan
    with pytest.raises(ParityError):
        parity._agreement(actual, _vectors())
    right = _vectors()
    for one, other in ((actual, right), (right, actual)):
        with pytest.raises(ParityError, match="differ by nan"):
            parity.prove_same_outputs([one, other], [right, right], tolerance=1)


def test_missing_rows_fail() -> None:
    with pytest.raises(ParityError, match="shape"):
        parity._agreement(_vectors()[:19], _vectors())
    with pytest.raises(ParityError, match="other outputs"):
        parity.prove_same_outputs([_vectors()[:19]], [_vectors()], tolerance=1)
