"""Two attestations compared: what rose by more than chance, what else changed."""

import copy
from typing import Any

import pytest

from app.lab.attestation.document import InvalidAttestation
from app.lab.attestation.drift import compare


def statement(errors: int, searches: int = 1000, outcome: str = "undecided") -> dict[str, Any]:
    rate = {
        "errors": errors, "searches": searches, "effective": float(searches),
        "rate": errors / searches,
    }  # fmt: skip
    fine = dict(rate, errors=0, rate=0.0)
    cell = {"group": "everybody", "stratum": "unchanged", "degraded": "none", "fpir": rate,
            "fnir": fine}  # fmt: skip
    same: dict[str, Any] = dict.fromkeys(
        ("requirement", "gallery_persons", "data", "software", "model", "calibration", "policy",
         "threshold"), 1
    )  # fmt: skip
    return {**same, "outcome": outcome, "cells": [cell]}


def test_the_same_is_no_drift() -> None:
    found = compare(statement(10), statement(10))
    assert (found.worse, found.changed) == ((), ())


def test_a_rise_beyond_chance_is_worse_and_a_fall_is_not() -> None:
    assert compare(statement(10), statement(14)).worse == ()
    (line,) = compare(statement(10), statement(40)).worse
    assert line == "FPIR of everybody / unchanged / none rose from 10 of 1,000 to 40 of 1,000."
    assert compare(statement(40), statement(10)).worse == ()


def test_a_worse_outcome_and_a_missing_cell_are_worse() -> None:
    later = statement(10, outcome="fail")
    later["cells"] = []
    later["model"] = 2
    found = compare(statement(10, outcome="pass"), later)
    assert found.worse == (
        "The outcome was pass and is fail.",
        "everybody / unchanged / none is no longer measured.",
    )
    assert found.changed == ("model differs",)


def test_what_cannot_be_compared_is_said() -> None:
    broken = copy.deepcopy(statement(1))
    del broken["cells"][0]["fpir"]["effective"]
    for other in ({}, broken, {**statement(1), "outcome": "fine"}):
        with pytest.raises(InvalidAttestation, match="cannot be compared"):
            compare(other, statement(1))
