"""Figures in words: no more digits than their uncertainty bears; and the verdict, what an
evaluation found in two sentences for someone who does not read error rates."""

import math

from app.decision.rates import Rate
from app.lab.evaluation.figures import Evaluation, PairsFigures, SettingFigures
from app.lab.evaluation.metrics import can_tell, least_trials

NOTHING = "–"

# Below this a per cent has too many zeros to be read: 0.01 %, but 9e-5.
_LEAST_PER_CENT = 0.99e-4


def rate_text(rate: Rate | None) -> str:
    """A rate with as many digits as its interval bears: "1.2 %", "3.0e-6"; a dash for None."""
    if rate is None or not math.isfinite(rate.value):
        return NOTHING
    return _number(rate.value, rate, unit=True)


def interval_text(rate: Rate | None) -> str:
    """Both ends of a rate's 95 % interval with the digits of `rate_text`: "0.9–1.5 %"."""
    if rate is None or not (math.isfinite(rate.low) and math.isfinite(rate.high)):
        return NOTHING
    return f"{_number(rate.low, rate, unit=False)}–{_number(rate.high, rate, unit=True)}"


def _number(value: float, rate: Rate, *, unit: bool) -> str:
    if max(rate.value, rate.low) < _LEAST_PER_CENT and rate.high < 10 * _LEAST_PER_CENT:
        return _scientific(value)
    text = per_cent(value, (rate.high - rate.low) / 2)
    return f"{text} %" if unit else text


def per_cent(value: float, uncertainty: float) -> str:
    """A share in per cent, with the decimals that its uncertainty, a share too, bears."""
    return f"{100 * value:.{_decimals(100 * uncertainty)}f}" if value else "0"


def _decimals(uncertainty: float) -> int:
    """Decimals worth writing: one digit of the uncertainty, or two where it starts with a 1."""
    if not math.isfinite(uncertainty) or uncertainty <= 0:
        return 2
    power = math.floor(math.log10(uncertainty))
    digits = 2 if uncertainty / 10**power < 1.95 else 1
    return min(max(digits - 1 - power, 0), 4)


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def target_text(rate: float) -> str:
    """A rate that was asked for and is exact: "1 %", "0.01 %", "1e-6"."""
    if rate >= _LEAST_PER_CENT:
        return f"{100 * rate:.6g} %"
    mantissa, _, exponent = f"{rate:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def change_text(value: float) -> str:
    """A relative difference: "+10 %", "−3 %"."""
    return f"{100 * value:+.0f} %".replace("-", "−") if math.isfinite(value) else NOTHING


def similarity_text(value: float) -> str:
    """A similarity or a threshold, to three decimals, with a true minus sign."""
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else NOTHING


_DENOMINATORS = (100, 1000, 10_000, 100_000, 1_000_000)


def verdict(evaluation: Evaluation) -> str:
    """Two sentences: what happens to strangers and to one's own people, and how sure that is."""
    if evaluation.setting is not None:
        return _of_searches(evaluation.setting, evaluation.model.pack)
    if evaluation.pairs is not None:
        return _of_pairs(evaluation.pairs)
    if evaluation.detection is not None and evaluation.detection.recall:
        return _of_detection(evaluation)
    return (
        "How often people are confused cannot be measured on this data: that needs at least two "
        "people "
        "with two photos each and one with a single photo, or labelled pairs. "
        "With a hundred people of each kind error rates can be estimated to a few per cent."
    )


def out_of(rate: float) -> str:
    """A share as a count of so many: "7 in 100", "4 in 10,000"; "none" for zero."""
    return "none" if rate <= 0 else _count(rate, _denominator(rate))


def _denominator(rate: float) -> int:
    return next((n for n in _DENOMINATORS if rate * n >= 0.95), _DENOMINATORS[-1])


def _count(rate: float, denominator: int, suffix: bool = True) -> str:
    """A whole number, with one decimal where it is small and would be far off without."""
    value = rate * denominator
    number = f"{value:.0f}" if value >= 2.5 or abs(value - round(value)) < 0.15 else f"{value:.1f}"
    return f"{number} in {denominator:,}" if suffix else number


def _estimate(rate: Rate, errors_of: str) -> str:
    """A rate with its interval: "about 1 stranger in 100 (95 % sure: 0.7 to 1.6)"."""
    if rate.value <= 0:
        return f"at most {out_of(rate.high)} {errors_of} (none here)"
    denominator = _denominator(rate.value)
    low, high = (_count(end, denominator, suffix=False) for end in (rate.low, rate.high))
    count = _count(rate.value, denominator)
    return f"about {count} {errors_of} (95 % interval {low} to {high})"


def _of_searches(setting: SettingFigures, pack: str) -> str:
    target = setting.target_fpir
    aim = f"FPIR {target_text(target)}" if target is not None else f"threshold {setting.threshold}"
    first = (
        f"At the setting you run ({aim}, {setting.persons:,} people enrolled with one photo each), "
        f"{_estimate(setting.fpir, 'strangers')} would be taken for someone; "
        f"{_estimate(setting.fnir, 'of your own people')} would not be recognised in one photo."
    )
    return f"{first} {_trust(setting, pack)}"


def _trust(setting: SettingFigures, pack: str) -> str:
    """The second sentence: whether the setting does what it says, and what that rests on."""
    target, fpir = setting.target_fpir, setting.fpir
    rests = f"{setting.strangers:,} strangers and {setting.persons:,} known people"
    if target is None:
        return (
            f"The pack {pack} has no calibration, so a larger gallery takes more strangers for "
            f"someone; this rests on {rests}."
        )
    wanted = target_text(target)
    if fpir.low > target:
        said = f"That exceeds the promised {wanted}: calibrate on your own people"
    elif not can_tell(target, setting.strangers):
        return (
            f"Whether the promised {wanted} is kept cannot be decided from {rests}: that needs "
            f"at least {least_trials(target):,} strangers."
        )
    elif fpir.high < target:
        said = f"That is better than the promised {wanted}"
    else:
        said = f"That agrees with the promised {wanted}"
    if setting.same_data:
        said += ", which was calibrated on this same data and so proves little"
    return f"{said}; it rests on {rests}, and other cameras and people give other rates."


def _of_pairs(pairs: PairsFigures) -> str:
    own = pairs.at_threshold
    others = pairs.pairs - pairs.mated
    return (
        f"At the pack's constant threshold ({own.threshold:g}), "
        f"{_estimate(own.fmr, 'pairs of different people')} would be taken for one person; "
        f"{_estimate(own.fnmr, 'pairs of one person')} would be refused. "
        f"That rests on {others:,} and {pairs.mated:,} pairs, so FMR below "
        f"{target_text(float(f'{3 / others:.1g}'))} cannot be measured with it; to measure "
        "searches in a "
        "gallery, give a folder of people."
    )


def _of_detection(evaluation: Evaluation) -> str:
    detection = evaluation.detection
    assert detection is not None, "the caller has looked"
    size = next((one for one in detection.recall if one.faces), detection.recall[0])
    found = size.interval
    if found is None:
        return "No face is labelled, so nothing can be measured. Label some faces."
    missed = Rate(1 - found.value, 1 - found.high, 1 - found.low)
    faces = f"labelled faces of at least {size.min_side:g} pixels" if size.min_side else "faces"
    return (
        f"Of {size.faces:,} {faces}, {_estimate(missed, 'would not be found')}. "
        "How often people are confused is not measured: that needs a folder of people."
    )
