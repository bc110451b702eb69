"""The statement of an attestation: what was measured, on what, with what (program, model pack,
networks), and what follows.
"""

import hashlib
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import app
from app.decision.calibration import Calibration
from app.decision.policy import CollectionPolicy
from app.decision.thresholds import ThresholdDecision
from app.inference.pack_spec import ModelPack
from app.lab.attestation.cells import Cell
from app.lab.attestation.requirement import Counted, Requirement, RequirementOutcome, decide, worst
from app.types import JsonObject

GIT_SECONDS = 10


def software() -> JsonObject:
    """Version, digest of the code that runs, and where it is a checkout its commit; `modified` says
    whether the checkout has changes that are in no commit."""
    root = Path(app.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    found: dict[str, object] = {
        "name": "likeness", "version": app.__version__, "code_sha256": digest.hexdigest()
    }  # fmt: skip
    commit = _git(root.parent, "rev-parse", "HEAD")
    changes = _git(root.parent, "status", "--porcelain", "--", "app")
    found["commit"] = commit
    found["modified"] = None if commit is None or changes is None else bool(changes)
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - of the operator's own PATH
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def model(pack: ModelPack, precision: str) -> JsonObject:
    """The pack, its embedding space, and the SHA-256 of each of its networks."""
    return {
        "pack": pack.name,
        "version": pack.version,
        "embedding_space": pack.embedding_space,
        "precision": precision,
        "networks": [{"file": one.file, "sha256": one.sha256} for one in pack.networks],
    }


def calibration(found: Calibration | None, data: str) -> JsonObject | None:
    """What backs the threshold: its id, a digest of its content, and what it was made of.
    `same_name`: its source is called like the `data` that is measured, so it is probably the same,
    and the rates are near those promised by construction."""
    if found is None:
        return None
    source = found.source
    return {
        "id": found.calibration_id,
        "source": source.kind,
        "same_name": source.name == data,
        "persons": source.persons,
        "faces": source.faces,
        "created_at": found.created_at.isoformat(),
    }


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
class Measurement:
    """What was counted, at which threshold by which policy, and for each attribute how many people
    who were measured have no group. `left_out`: how many persons of the gallery a search leaves
    out, because it is one of theirs."""

    policy: CollectionPolicy
    rule: ThresholdDecision
    cells: Sequence[Cell]
    without_group: Mapping[str, int]
    left_out: int = 0


def make_statement(
    provenance: Provenance,
    requirement: Requirement,
    measured: Measurement,
    gallery_persons: int,
) -> JsonObject:
    """Everything that is signed. `gallery_persons`: whom the service holds or is meant to hold."""
    policy, rule, cells = measured.policy, measured.rule, measured.cells
    wanted = math.ceil(requirement.gallery_share * gallery_persons - 1e-9)
    rows = [_row(cell, requirement, wanted - measured.left_out) for cell in cells]
    open_points = _open_points(requirement, cells, list(measured.without_group))
    searched = {cell.gallery_persons for cell in cells if cell.has_whole_gallery}
    open_points += [
        f"The gallery has {persons + measured.left_out:,} persons, and the requirement asks for "
        f"{wanted:,} at least."
        for persons in sorted(searched)
        if persons + measured.left_out < wanted
    ]
    outcomes = [RequirementOutcome(str(row["outcome"])) for row in rows]
    outcomes += [RequirementOutcome.UNDECIDED] * len(open_points)
    return {
        "outcome": worst(outcomes).value,
        "undecided_because": open_points,
        "created_at": provenance.created_at,
        "requirement": requirement.model_dump(mode="json"),
        "gallery_persons": gallery_persons,
        "gallery_persons_to_search": wanted,
        "people_without_group": dict(measured.without_group),
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
    if requirement.by_group and not attributes:
        points.append(
            "The requirement is one for each group of people, and no groups were given "
            "(--attributes)."
        )
    missing = [name for name in requirement.attributes if name not in attributes]
    points += [f"The requirement asks for groups by {n}, which were not given." for n in missing]
    # A column can be given and have no cell: its person ids may be written otherwise.
    wanted = attributes if requirement.by_group else requirement.attributes
    counted = {cell.attribute for cell in cells}
    points += [
        f"The groups by {name} hold nobody who was measured. Write the person ids of --attributes "
        "as the folder or collection has them."
        for name in wanted
        if name in attributes and name not in counted
    ]
    measured = {cell.stratum for cell in cells}
    points += [
        f"The requirement asks for the stratum {name}, which was not measured."
        for name in requirement.strata
        if name not in measured
    ]
    return points


def _row(cell: Cell, requirement: Requirement, wanted: int) -> JsonObject:
    rates: dict[str, JsonObject] = {
        "fpir": _decided(cell.fpir, requirement.fpir, requirement.confidence),
        "fnir": _decided(cell.fnir, requirement.fnir, requirement.confidence),
    }
    outcomes = [
        RequirementOutcome(str(rate["outcome"])) for rate in rates.values() if "outcome" in rate
    ]
    enough = not cell.has_whole_gallery or cell.gallery_persons >= wanted
    outcome = worst(outcomes)
    if outcome is RequirementOutcome.PASS and not enough:
        outcome = RequirementOutcome.UNDECIDED  # a larger gallery has more look-alikes
    return {
        "group": cell.group,
        "stratum": cell.stratum,
        "degraded": cell.sides,
        "gallery_persons": cell.gallery_persons,
        "gallery_large_enough": enough,
        "threshold": cell.threshold,
        "outcome": outcome.value,
        **rates,
    }


def _decided(counted: Counted, limit: float | None, confidence: float) -> JsonObject:
    """A rate as it stands in a row; without a limit it is only reported."""
    found = decide(counted, 1.0 if limit is None else limit, confidence)
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
