"""The statement of an attestation: what was measured, on what, with what, and what follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.decision.thresholds import CollectionPolicy, ThresholdDecision
from app.lab.attestation.cells import EVERYBODY, Cell
from app.lab.attestation.judging import Counted, Outcome, judge, worst
from app.lab.attestation.requirement import Requirement
from app.types import JsonObject

STATISTICS = (
    "Bounds are one-sided and exact (Clopper and Pearson, 1934), for as many independent searches "
    "as 'effective' says. A limit is kept where the upper bound is at most the limit, broken where "
    "the lower bound is above it, and cannot be decided between. 'people_needed': how many would "
    "decide it at the rate measured."
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the figures were measured on and with, as JSON."""

    created_at: str
    data: JsonObject
    method: str
    software: JsonObject
    model: JsonObject
    calibration: JsonObject | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What was counted, at which threshold by which policy, and the attributes of the groups."""

    policy: CollectionPolicy
    rule: ThresholdDecision
    cells: Sequence[Cell]
    attributes: Sequence[str]


def make_statement(
    provenance: Provenance,
    requirement: Requirement,
    measured: Measured,
    gallery_persons: int,
) -> JsonObject:
    """Everything that is signed. `gallery_persons`: whom the service holds or is meant to hold."""
    policy, rule, cells = measured.policy, measured.rule, measured.cells
    wanted = math.ceil(requirement.gallery_share * gallery_persons - 1e-9)
    rows = [_row(cell, requirement, wanted) for cell in cells]
    open_points = _open_points(requirement, cells, measured.attributes)
    outcomes = [Outcome(str(row["outcome"])) for row in rows]
    outcomes += [Outcome.UNDECIDED] * len(open_points)
    return {
        "outcome": worst(outcomes).value,
        "undecided_because": open_points,
        "created_at": provenance.created_at,
        "requirement": requirement.model_dump(mode="json"),
        "gallery_persons": gallery_persons,
        "gallery_persons_to_search": wanted,
        "data": provenance.data,
        "method": provenance.method,
        "statistics": STATISTICS,
        "software": provenance.software,
        "model": provenance.model,
        "calibration": provenance.calibration,
        "policy": policy.model_dump(mode="json"),
        "threshold": {
            "value": rule.threshold,
            "source": rule.source.value,
            "target_fpir": rule.target,
            "lift": rule.lift,
            "score": rule.score.value,
        },
        "cells": rows,
    }


def _open_points(
    requirement: Requirement, cells: Sequence[Cell], attributes: Sequence[str]
) -> list[str]:
    """What the requirement asks for and nobody measured."""
    points = []
    if requirement.by_group and all(cell.group == EVERYBODY for cell in cells):
        points.append(
            "The requirement is one for each group of people, and no groups were given "
            "(--attributes)."
        )
    missing = [name for name in requirement.attributes if name not in attributes]
    points += [f"The requirement asks for groups by {n}, which were not given." for n in missing]
    measured = {cell.stratum for cell in cells}
    points += [
        f"The requirement asks for the stratum {name}, which was not measured."
        for name in requirement.strata
        if name not in measured
    ]
    return points


def _row(cell: Cell, requirement: Requirement, wanted: int) -> JsonObject:
    rates: dict[str, JsonObject] = {
        "fpir": _judged(cell.fpir, requirement.fpir, requirement.confidence),
        "fnir": _judged(cell.fnir, requirement.fnir, requirement.confidence),
    }
    outcomes = [Outcome(str(rate["outcome"])) for rate in rates.values() if "outcome" in rate]
    # Of degraded photos to enroll the service itself refuses some: that leaves nothing unmeasured.
    enough = cell.sides == "both" or cell.gallery_persons >= wanted
    outcome = worst(outcomes)
    if outcome is Outcome.PASS and not enough:
        outcome = Outcome.UNDECIDED  # a larger gallery has more look-alikes
    return {
        "group": cell.group,
        "stratum": cell.stratum,
        "degraded": cell.sides,
        "gallery_persons": cell.gallery_persons,
        "gallery_large_enough": enough,
        "outcome": outcome.value,
        **rates,
    }


def _judged(counted: Counted, limit: float | None, confidence: float) -> JsonObject:
    """A rate as it stands in a row; without a limit it is only reported."""
    found = judge(counted, 1.0 if limit is None else limit, confidence)
    row: dict[str, object] = {
        "errors": counted.errors,
        "searches": counted.searches,
        "effective": round(counted.effective, 6),
        "rate": counted.rate,
        "low": found.low,
        "high": found.high,
    }
    if limit is not None:
        row["limit"], row["outcome"] = limit, found.outcome.value
        row["people_needed"] = found.people_needed
    return row
