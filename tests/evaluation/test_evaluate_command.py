"""`likeness evaluate` as it is typed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.evaluate import evaluate_app


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(evaluate_app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIKENESS_PACK", raising=False)


def test_pairs_as_json(labelled_folder: Path) -> None:
    result = run("pairs", labelled_folder / "pairs.csv", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"]["pack"] == "default"
    assert report["model"]["embedding_space"].startswith("es-")
    assert (report["pairs"], report["mated"], report["photos"]) == (22, 11, 5)
    assert 0.9 < report["accuracy"]["mean"] < 1.0  # the mated pair with nobody is lost
    assert report["at_threshold"]["fnmr"] == pytest.approx(1 / 11)
    assert {failure["code"] for failure in report["failures"]} == {"no_face", "unreadable_image"}


def test_pairs_as_table(labelled_folder: Path) -> None:
    result = run("pairs", labelled_folder / "pairs.csv", "--images", labelled_folder / "images")
    assert result.exit_code == 0, result.output
    for words in ("11 mated, 11 non-mated", "2 failed to enrol", "EER", "TAR at FAR 0.001",
                  "failed: nobody.png (no_face)"):  # fmt: skip
        assert words in result.stdout


def test_detection(labelled_folder: Path) -> None:
    labels = labelled_folder / "faces.csv"
    labels.write_text("image,x1,y1,x2,y2\nnobody.png,10,10,60,60\n")
    result = run("detection", labels)
    assert result.exit_code == 0, result.output
    assert "0 of 1" in result.stdout
    report = json.loads(run("detection", labels, "--json").stdout)
    assert report["recall"][0] == {"min_side": 32.0, "faces": 1, "found": 0}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pairs", "none.csv"], "cannot be read"),
        (["pairs", "pairs.csv", "--images", "elsewhere"], "name the folder"),
        (["pairs", "pairs.csv", "--pack", "no-such-pack"], "There is no model pack"),
    ],
)
def test_a_library_error_is_a_sentence_and_status_2(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(labelled_folder)
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
