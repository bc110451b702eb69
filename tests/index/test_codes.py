"""The promise that certified answers rest on: no estimate lies below the bound."""

import numpy as np
import pytest
from scipy.special import betainc

from app.index.certified.codes import FAILURE, ErrorBound, Quantiser
from tests.index.conftest import unit


def test_reach_is_the_quantile_of_a_random_direction() -> None:
    """One coordinate of a random point on the sphere, at a rate that can be counted."""
    bound = ErrorBound(64, 32, failure=0.02)
    generator = np.random.default_rng(0)
    points = unit(generator.standard_normal((200_000, 63)))
    assert (points[:, 0] > bound.reach).mean() == pytest.approx(0.02 / 2, rel=0.05)


def test_both_bounds_together_fail_no_more_often_than_promised() -> None:
    """Both are used in one inequality: that of a random direction, and Hoeffding's."""
    bound = ErrorBound(512, 256)
    direction = betainc(255.0, 0.5, 1 - bound.reach**2) / 2
    rounding = np.exp(-2 * bound.rounding**2 / 256)
    assert direction + rounding == pytest.approx(FAILURE)


@pytest.mark.parametrize("dimension", [64, 192, pytest.param(512, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mate", [0.1, 0.4, 0.7, 0.95])
def test_no_estimate_lies_below_the_bound(dimension: int, mate: float) -> None:
    """Vectors at a known similarity of a probe: the bound for that similarity holds for all of
    them. One for a chance of 5 % (half of 10 %) fails about as often as it says (they share one
    rotation, so not exactly), which shows that the bound is no looser than it must be."""
    generator = np.random.default_rng(1)
    quantiser = Quantiser.random(dimension, generator)
    probe = unit(generator.standard_normal((1, dimension)))[0]
    others = generator.standard_normal((20_000, dimension)).astype(np.float32)
    others = unit(others - np.outer(others @ probe, probe))
    vectors = unit(mate * probe + np.sqrt(1 - mate**2) * others)
    codes = quantiser.encode(vectors)
    rotated = quantiser.rotate(probe)
    rows, estimates = codes.scan.within(rotated, rotated.lowest + rotated.step)
    assert len(rows) == len(vectors)
    strict, loose = ErrorBound(dimension, dimension // 2), ErrorBound(dimension, 0, failure=0.1)
    projection, residual = codes.projection[rows], codes.residual[rows]
    assert (estimates >= strict.lowest_estimate(mate, projection, residual, rotated.step)).all()
    missed = estimates < loose.lowest_estimate(mate, projection, residual, rotated.step)
    assert 0.01 < missed.mean() < 0.12


def test_the_scans_table_rounds_less_than_is_allowed_for() -> None:
    generator = np.random.default_rng(2)
    quantiser = Quantiser.random(128, generator)
    vectors = unit(generator.standard_normal((5_000, 128)))
    codes = quantiser.encode(vectors)
    rounded = quantiser._round(vectors @ quantiser.rotation.T)
    for probe in unit(generator.standard_normal((20, 128))):
        rotated = quantiser.rotate(probe)
        rows, estimates = codes.scan.within(rotated, rotated.lowest + rotated.step)
        errors = np.abs(rounded[rows] @ rotated.vector[0] - estimates)
        assert errors.max() < ErrorBound(128, 64).rounding * rotated.step


def test_a_radius_just_below_an_estimate_finds_its_row() -> None:
    """FAISS counts a radius in rounded steps; a later scan leaves out what is above the radius of
    the first, so the first one has to have found it."""
    generator = np.random.default_rng(5)
    quantiser = Quantiser.random(64, generator)
    codes = quantiser.encode(unit(generator.standard_normal((500, 64))))
    probe, other = (
        quantiser.rotate(one) for one in unit(generator.standard_normal((2, 64)))
    )  # fmt: skip
    rows, estimates = codes.scan.within(probe, probe.lowest + probe.step)
    for row, estimate in zip(rows[::10], estimates[::10], strict=True):
        radius = float(np.nextafter(estimate, np.float32(-1)))
        assert row in codes.scan.within(probe, radius)[0]
        limits, found, _ = codes.scan.within_all([other, probe], radius)
        assert row in found[limits[1] : limits[2]]


def test_a_radius_below_every_code_gives_every_row() -> None:
    generator = np.random.default_rng(3)
    quantiser = Quantiser.random(16, generator)
    codes = quantiser.encode(unit(generator.standard_normal((100, 16))))
    rotated = quantiser.rotate(unit(generator.standard_normal((1, 16)))[0])
    for radius in (-0.9, -2.0, -1e6):
        rows, _ = codes.scan.within(rotated, radius)
        assert len(np.unique(rows)) == 100


def test_codes_survive_packing_and_one_can_be_blanked() -> None:
    generator = np.random.default_rng(4)
    quantiser = Quantiser.random(64, generator)
    vectors = unit(generator.standard_normal((100, 64)))
    codes = quantiser.encode(vectors)
    packed = codes.scan.packed()
    again = type(codes.scan).of_packed(quantiser, packed, 100)
    rotated = quantiser.rotate(vectors[40])
    first = dict(zip(*(a.tolist() for a in codes.scan.within(rotated, -0.3)), strict=True))
    assert dict(zip(*(a.tolist() for a in again.within(rotated, -0.3)), strict=True)) == first
    block = packed[: len(packed) // 4].copy()
    again.blank(block, 3)
    changed = type(codes.scan).of_packed(
        quantiser, np.concatenate([block, packed[len(block) :]]), 100
    )
    after = dict(
        zip(
            *(a.tolist() for a in changed.within(rotated, rotated.lowest + rotated.step)),
            strict=True,
        )
    )
    before = dict(
        zip(
            *(a.tolist() for a in codes.scan.within(rotated, rotated.lowest + rotated.step)),
            strict=True,
        )
    )
    assert after.pop(3, None) != before.pop(3)
    assert after == before
