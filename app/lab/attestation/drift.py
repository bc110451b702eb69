"""What differs between two attestations, and whether it is more than chance."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.lab.attestation.document import InvalidAttestation

# Of all comparisons together (Bonferroni), one-sided: has a rate risen?
SIGNIFICANCE = 0.05
_OUTCOMES = ("pass", "undecided", "fail")
StatementMembers = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Drift:
    """What changed: `worse` is a reason to look before continuing, `changed` explains it."""

    worse: tuple[str, ...]
    changed: tuple[str, ...]


def compare(earlier: StatementMembers, later: StatementMembers) -> Drift:
    """A rate is worse where Fisher's exact test (one-sided) says that it rose; so is an outcome
    that was better, and a cell that is no longer measured. Raises InvalidAttestation."""
    try:
        return Drift(tuple(_worse(earlier, later)), tuple(_changed(earlier, later)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidAttestation(
            f"The two attestations cannot be compared: {type(error).__name__}: {error}."
        ) from error


def _worse(earlier: StatementMembers, later: StatementMembers) -> Iterator[str]:
    if _OUTCOMES.index(later["outcome"]) > _OUTCOMES.index(earlier["outcome"]):
        yield f"The outcome was {earlier['outcome']} and is {later['outcome']}."
    before, now = _cells(earlier), _cells(later)
    for name in before:
        if name not in now:
            yield f"{' / '.join(name)} is no longer measured."
    pairs = [
        (name, rate, before[name][rate], now[name][rate])
        for name in now
        if name in before
        for rate in ("fpir", "fnir")
    ]
    for name, rate, old, new in pairs:
        if _rise(old, new) < SIGNIFICANCE / len(pairs):
            yield (
                f"{rate.upper()} of {' / '.join(name)} rose from {_share(old)} to {_share(new)}."
            )


def _cells(statement: StatementMembers) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    return {
        (str(row["group"]), str(row["stratum"]), str(row["degraded"])): row
        for row in statement["cells"]
    }


def _rise(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """The chance of such a rise if nothing had changed; 1 where there is nothing to compare."""
    from scipy.stats import fisher_exact  # noqa: PLC0415 - takes a second, and only this needs it

    table = [_wrong_and_right(new), _wrong_and_right(old)]
    if min(sum(row) for row in table) <= 0:
        return 1.0
    return float(fisher_exact(table, alternative="greater").pvalue)


def _wrong_and_right(row: Mapping[str, Any]) -> tuple[int, int]:
    trials = round(float(row["effective"]))
    wrong = round(float(row["rate"] or 0.0) * trials)
    return wrong, trials - wrong


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['errors']:,} of {row['searches']:,}"


def _changed(earlier: StatementMembers, later: StatementMembers) -> Iterator[str]:
    for name in ("requirement", "gallery_persons", "data", "software", "model", "calibration",
                 "policy", "threshold"):  # fmt: skip
        if earlier[name] != later[name]:
            yield f"{name} differs"
