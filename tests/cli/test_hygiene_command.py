"""`likeness hygiene`: what is shown of the findings."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from app.cli.commands import app
from app.cli.console import out
from app.services import build_services
from app.settings import Settings
from app.store.records import NewTemplate
from tests.writing import enroll_person


@pytest.fixture(autouse=True)
def one_person_under_two_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path))
    services = build_services(Settings())
    vectors = np.eye(services.pack.recogniser.dimension, dtype=np.float32)
    for i, person in enumerate(("ada", "bob", "eve")):
        enroll_person(services.gallery, "default", person, None, [NewTemplate(vectors[i], person)])
    enroll_person(services.gallery, "default", "ada.l", None, [NewTemplate(vectors[0], "again")])
    services.close()


def test_findings_are_possible_and_chance_is_named() -> None:
    result = CliRunner().invoke(app, ["hygiene"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    shown = " ".join(result.output.split())
    assert "Possibly one person under two ids (about 0.015 expected by chance): 1" in shown
    assert "such pairs by chance" in shown
    assert "Possibly under the wrong id (about 0 expected by chance): none." in shown
    assert "robabl" not in shown


def test_ids_are_whole_in_few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are arguments of --merge and --move. A cell continues on the lines below."""
    long = "anastasia.of-the-department-of-long-names"
    services = build_services(Settings())
    vector = np.eye(services.pack.recogniser.dimension, dtype=np.float32)[1]
    enroll_person(services.gallery, "default", long, None, [NewTemplate(vector, "long")])
    services.close()
    monkeypatch.setattr(out, "width", 80)
    result = CliRunner().invoke(app, ["hygiene"])
    assert result.exit_code == 0
    assert long not in result.output
    rows = [line.split("│")[1:-1] for line in result.output.splitlines() if "│" in line]
    columns = ["".join(one.strip() for one in column) for column in zip(*rows, strict=True)]
    assert any(long in column for column in columns), result.output


def test_a_pair_is_declared_and_withdrawn() -> None:
    def shown(*options: str) -> str:
        result = CliRunner().invoke(app, ["hygiene", *options], env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    assert "ada and ada.l are different persons." in shown("--different", "ada", "ada.l")
    assert "expected by chance): none." in shown()
    refused = CliRunner().invoke(app, ["hygiene", "--merge", "ada.l", "ada"])
    assert refused.exit_code != 0
    assert "withdraw the declaration" in " ".join(refused.output.split())
    assert "no longer declared" in shown("--withdraw", "ada.l", "ada")
    assert "one person under two ids (about 0.015 expected by chance): 1" in shown()
    absent = CliRunner().invoke(app, ["hygiene", "--different", "ada", "nobody"])
    assert absent.exit_code != 0
    assert "There is no person 'nobody'" in " ".join(absent.output.split())
