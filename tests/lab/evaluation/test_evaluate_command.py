"""`likeness evaluate` as it is typed."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.commands import app
from tests.lab.evaluation.conftest import PHOTOS

pytestmark = pytest.mark.slow


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *(str(argument) for argument in arguments)])


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIKENESS_PACK", raising=False)
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))


def test_pairs_as_json(labelled_folder: Path) -> None:
    result = run(labelled_folder / "pairs.csv", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["model"]["pack"] == "default"
    assert report["model"]["embedding_space"].startswith("es-")
    pairs = report["pairs"]
    assert (pairs["pairs"], pairs["mated"], pairs["photos"]) == (22, 11, 5)
    assert 0.9 < pairs["accuracy"]["mean"] < 1.0  # the mated pair with nobody is lost
    assert pairs["at_threshold"]["fnmr"]["value"] == pytest.approx(1 / 11)
    assert pairs["at_threshold"]["fnmr"]["high"] > 0.4  # one of eleven says little
    assert pairs["points"] == []  # eleven non-mated pairs tell nothing of a FMR of 1 %
    assert pairs["failures"] == 2
    assert report["comparisons"] is None


def test_pairs_as_table(labelled_folder: Path) -> None:
    result = run(labelled_folder / "pairs.csv", "--images", labelled_folder / "images")
    assert result.exit_code == 0, result.output
    assert " ".join(result.stdout.split()).startswith(
        "At the pack's constant threshold (0.524), at"
    )
    for words in ("mated", "failures", "EER", "FNMR", "pack's"):
        assert words in result.stdout


def test_boxes(labelled_folder: Path) -> None:
    labels = labelled_folder / "faces.csv"
    labels.write_text("image,x1,y1,x2,y2\nnobody.png,10,10,60,60\n")
    result = run(labels)
    assert result.exit_code == 0, result.output
    assert "Of 1 labelled faces of at least 32 pixels, about 100 in 100" in result.stdout
    report = json.loads(run(labels, "--json").stdout)["detection"]
    size = report["recall"][0]
    assert (size["min_side"], size["faces"], size["found"], size["recall"]) == (32.0, 1, 0, 0.0)
    assert size["interval"]["high"] == pytest.approx(0.95)


@pytest.fixture
def people_folder(tmp_path: Path) -> Path:
    """Two presidents with two photos, two strangers, and everything that can be wrong."""
    root = tmp_path / "people"
    for person, names in {
        "obama": ["obama.jpg", "obama2.jpg"],
        "biden": ["biden.jpg"],
        "collins": ["collins.jpg"],
        "somebody": ["obama.jpg"],
    }.items():
        (root / person).mkdir(parents=True)
        for name in names:
            shutil.copy(PHOTOS / name, root / person / name)
    cut_off = (PHOTOS / "biden.jpg").read_bytes()[:2000]
    (root / "biden" / "broken.jpg").write_bytes(cut_off)
    return root


def test_a_folder_of_people_and_what_is_wrong_with_it(people_folder: Path) -> None:
    result = run(people_folder, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    (data,) = report["data"]
    assert (data["photos"], data["people"], data["failures_to_enrol"]) == (6, 4, 1)
    problems = {(problem["image"], problem["code"]) for problem in data["problems"]}
    assert {
        ("biden/broken.jpg", "unreadable_image"),
        ("somebody/obama.jpg", "same_photo_of_two_people"),
        ("collins/collins.jpg", "one_photo"),
    } <= problems
    worst = report["comparisons"]["worst_non_mated"][0]
    assert {worst["person_a"], worst["person_b"]} == {"obama", "somebody"}
    assert worst["similarity"] == pytest.approx(1.0, abs=1e-5)


def test_known_label_noise_is_left_out(people_folder: Path, tmp_path: Path) -> None:
    noise = tmp_path / "noise.csv"
    noise.write_text("image,person_a,person_b\n,obama,somebody\n")
    report = json.loads(run(people_folder, "--label-noise", noise, "--json").stdout)
    assert report["data"][0]["left_out"] == ["obama = somebody"]
    assert report["comparisons"]["worst_non_mated"][0]["similarity"] < 0.5
    assert report["comparisons"]["person_pairs"] == 5


def test_figures_by_group(people_folder: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("person,office\nobama,president\nbiden,president\ncollins,astronaut\n")
    report = json.loads(run(people_folder, "--attributes", groups, "--json").stdout)
    one, two = report["groups"]
    assert (one["group"], one["people"]) == ("astronaut", 1)
    assert (two["group"], two["people"], two["fmr"]["value"]) == ("president", 2, 0.0)
    assert two["failures_to_enrol"]["value"] == pytest.approx(1 / 4)


def test_the_report_is_three_files(people_folder: Path, tmp_path: Path) -> None:
    result = run(people_folder, "--output", tmp_path / "report")
    assert result.exit_code == 0, result.output
    html = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/jpeg;base64," in html
    assert "http-equiv" in html
    assert json.loads((tmp_path / "report" / "report.json").read_text())["comparisons"]
    assert (tmp_path / "report" / "report.csv").read_text().startswith("section,condition,metric")
    run(people_folder, "--output", tmp_path / "bare", "--no-thumbnails", "--no-cache")
    assert "data:image/jpeg" not in (tmp_path / "bare" / "report.html").read_text()


def test_a_report_replaces_nothing_that_is_read(labelled_folder: Path) -> None:
    pairs = (labelled_folder / "pairs.csv").rename(labelled_folder / "report.csv")
    before = pairs.read_bytes()
    result = run(pairs, "--output", labelled_folder)
    assert result.exit_code == 2
    assert "would be replaced" in " ".join(result.output.split())
    assert pairs.read_bytes() == before


def test_a_report_that_cannot_be_written(people_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(people_folder, "--output", tmp_path / "file" / "report")
    assert result.exit_code == 2
    assert "cannot be written" in " ".join(result.output.split())


def test_a_calibration_replaces_nothing_that_is_read(people_folder: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("person,office\nobama,president\n")
    result = run(people_folder, "--attributes", groups, "--calibration", groups)
    assert result.exit_code == 2
    assert "would be replaced" in " ".join(result.output.split())
    assert groups.read_text() == "person,office\nobama,president\n"


def test_too_few_people_make_no_calibration(people_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    result = run(people_folder, "--calibration", path)
    assert result.exit_code == 2
    assert "100 people" in " ".join(result.output.split())
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.csv"], "none.csv does not exist"),
        (["pairs.csv", "--images", "elsewhere"], "name the folder"),
        (["pairs.csv", "--pack", "no-such-pack"], "There is no model pack"),
        (["pairs.csv", "pairs.csv"], "second source of pairs"),
        (["images"], "has no photos"),
        (["strange.csv"], "neither a folder of people nor a CSV"),
    ],
)
def test_a_library_error_is_a_sentence_and_status_2(
    labelled_folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(labelled_folder)
    Path("strange.csv").write_text("a,b\n1,2\n")
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())
