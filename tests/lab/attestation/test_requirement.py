"""Pass, fail, or not to be decided: exact one-sided bounds, and how many people would decide."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from app.index.comparator import COSINE
from app.lab.attestation.cells import UNCHANGED, BestScores, Cell, Faces, Searched, count_cells
from app.lab.attestation.document import AttestationError
from app.lab.attestation.requirement import (
    NAMED,
    Counted,
    Requirement,
    RequirementOutcome,
    bounds,
    decide,
    find_requirement,
    trials_needed,
    worst,
)
from app.lab.attestation.statement import _open_points, _row
from tests.decision.conftest import people

LIMIT = 0.001


def decided(errors: int, searches: int, effective: float | None = None) -> RequirementOutcome:
    return decide(Counted(errors, searches, effective or searches), LIMIT, 0.95).outcome


def test_none_of_2995_is_the_least_that_shows_one_in_a_thousand() -> None:
    assert decided(0, 2994) is RequirementOutcome.UNDECIDED
    assert decided(0, 2995) is RequirementOutcome.PASS
    found = decide(Counted(0, 10, 10), LIMIT, 0.95)
    assert found.people_needed == 2995
    assert (found.low, found.high) == pytest.approx((0, 0.2589), abs=1e-4)


def test_more_errors_need_more_people() -> None:
    assert decided(1, 4741) is RequirementOutcome.UNDECIDED
    assert decided(1, 4742) is RequirementOutcome.PASS
    assert decided(7, 507) is RequirementOutcome.FAIL
    assert decided(1, 507) is RequirementOutcome.UNDECIDED
    assert decided(0, 0) is RequirementOutcome.UNDECIDED


def test_searches_that_are_not_independent_count_for_less() -> None:
    assert decided(0, 2995, 1497.5) is RequirementOutcome.UNDECIDED
    assert decide(Counted(0, 100, 50), LIMIT, 0.95).people_needed == 2 * 2995


def test_a_rate_at_the_limit_is_decided_by_nobody() -> None:
    assert trials_needed(LIMIT, LIMIT, 0.95) is None
    needed = trials_needed(0.002, LIMIT, 0.95)
    assert needed is not None
    assert bounds(0.002, needed, 0.95)[0] > LIMIT
    assert bounds(0.002, needed - 1, 0.95)[0] <= LIMIT


def test_the_worst_outcome_is_that_of_the_whole() -> None:
    assert worst([RequirementOutcome.PASS, RequirementOutcome.PASS]) is RequirementOutcome.PASS
    assert (
        worst([RequirementOutcome.PASS, RequirementOutcome.UNDECIDED])
        is RequirementOutcome.UNDECIDED
    )
    assert worst([RequirementOutcome.UNDECIDED, RequirementOutcome.FAIL]) is RequirementOutcome.FAIL
    assert worst([]) is RequirementOutcome.UNDECIDED


def test_a_gallery_too_small_cannot_pass_unless_enrolment_itself_refused() -> None:
    def outcome(sides: str, gallery: int) -> object:
        counted = Counted(0, 5000, 5000)
        cell = Cell("everybody", "x", sides, gallery, counted, counted, 0.5)
        return _row(cell, NAMED["sp800-63a-4"], wanted=90)["outcome"]

    assert outcome("none", 90) == "pass"
    assert outcome("none", 89) == outcome("probe", 89) == "undecided"
    assert outcome("both", 0) == "pass"


def test_a_group_that_holds_nobody_was_not_measured() -> None:
    names = [f"p{i}" for i in range(8)]
    data = people(8, dimension=16)
    found = BestScores(Faces(data.vectors, data.persons.astype(np.int64), np.arange(8)), COSINE)
    searched = Searched(UNCHANGED, "none", 8, found, names, found, names)
    groups = {
        "sex": dict.fromkeys(names, "f"),
        "age": {name.upper(): "old" for name in names},  # written otherwise
    }
    cells = list(count_cells(searched, 0.5, groups))
    assert [(cell.group, cell.attribute) for cell in cells] == [
        ("everybody", None),
        ("sex=f", "sex"),
    ]

    def points(given: Sequence[str], **options: object) -> list[str]:
        requirement = Requirement.model_validate({"name": "x", "fpir": 0.1, **options})
        return _open_points(requirement, cells, given)

    nobody = "The groups by age hold nobody who was measured."
    (point,) = points(["sex", "age"], attributes=["sex", "age"], by_group=False)
    assert point.startswith(nobody)
    (point,) = points(["sex", "age"])  # one for each group that is given
    assert point.startswith(nobody)
    assert points(["sex", "age"], attributes=["sex"], by_group=False) == []
    assert points(["sex"], attributes=["sex"]) == []
    (point,) = points(["sex"], attributes=["sex", "age"])
    assert "age, which were not given" in point


def test_the_named_requirement() -> None:
    found = find_requirement("sp800-63a-4")
    assert (found.fpir, found.gallery_share, found.by_group) == (0.001, 0.9, True)
    assert found is NAMED["sp800-63a-4"]


def test_one_s_own_requirement(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(
        'name = "gate 3"\nfpir = 0.01\nfnir = 0.1\ngallery_persons = 500\nby_group = false\n'
    )
    found = find_requirement(str(path))
    assert (found.name, found.fpir, found.fnir, found.gallery_persons) == ("gate 3", 0.01, 0.1, 500)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('name = "x"\nfpir = 0.01\nfpri = 1', "fpri: There is no such field"),
        ('name = "x"\nfpir = 0', "fpir: Input should be greater than 0"),
        ('name = "x"\nfpir = 1.5', "fpir: Input should be less than 1"),
        ('name = "x"\nfpir = nan', "fpir"),
        ('name = "x"\nfpir = 0.1\nconfidence = 1', "confidence"),
        ('name = "x"\nfpir = 0.1\ngallery_share = 2', "gallery_share"),
        ('name = "x"\nfpir = 0.1\ngallery_persons = 0', "gallery_persons"),
        ("fpir = 0.1", "name: Field required"),
        ("fpir = ", "is not TOML"),
        ("x" * 70_000, "it is not a requirement"),
        ("\udcff", "is not TOML"),
    ],
)
def test_an_impossible_requirement_names_what_is_wrong(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "ours.toml"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(AttestationError, match=words):
        find_requirement(str(path))


@pytest.mark.parametrize("name", ["none.toml", ".", "a\0b"])
def test_a_requirement_that_is_not_there(name: str) -> None:
    with pytest.raises(AttestationError, match="sp800-63a-4"):
        find_requirement(name)
