"""Figures in words: no more digits than their uncertainty bears."""

import math

from app.decision.rates import Rate

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
