"""`likeness attest` as it is typed: measure, verify, compare; each outcome has its exit status."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.lab.evaluation.conftest import PHOTOS

pytestmark = pytest.mark.slow

EASY = 'name = "easy"\nfpir = 0.97\nby_group = false\n'
HARD = 'name = "hard"\nfpir = 0.001\nby_group = false\n'


@pytest.fixture
def key(run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    result = run("attest", "keygen", path)
    assert result.exit_code == 0, result.output
    assert "SHA256:" in result.stdout
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One person with two photos, two strangers, one photo of nobody's face."""
    root = tmp_path / "people"
    for person, name in (
        ("obama", "obama.jpg"), ("obama", "obama2.jpg"), ("biden", "biden.jpg"),
        ("collins", "collins.jpg"),
    ):  # fmt: skip
        (root / person).mkdir(parents=True, exist_ok=True)
        shutil.copy(PHOTOS / name, root / person / name)
    (root / "nobody").mkdir()
    (root / "nobody" / "x.jpg").write_bytes(b"no photo")
    return root


def requirement(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "requirement.toml"
    path.write_text(content)
    return path


def test_a_folder_attested_verified_and_compared(
    run: Run, key: Path, folder: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    easy = requirement(tmp_path, EASY)
    asked = ("--key", key, "--requirement", easy, "--no-strata")
    result = run("attest", folder, *asked, "--output", first)
    assert result.exit_code == 0, result.output
    assert "PASS: easy" in result.stdout
    result = run("attest", folder, *asked, "--output", second, "--compare", first)
    assert result.exit_code == 0, result.output
    assert "Nothing is worse" in result.stdout
    one, two = (json.loads(path.read_text())["statement"] for path in (first, second))
    assert one["cells"] == two["cells"]
    data = one["data"]
    assert (data["photos"], data["people"], data["enrolled"], data["strangers"]) == (5, 4, 1, 2)
    assert data["failures_to_enrol"] == 1
    assert one["model"]["networks"][1]["sha256"]
    assert len(one["software"]["code_sha256"]) == 64
    assert "obama" not in first.read_text()
    public = f"{key}.pub"
    result = run("attest", "verify", second, "--key", public, "--compare", first)
    assert result.exit_code == 0, result.output
    assert "Signed by SHA256:" in result.stdout
    first.write_bytes(first.read_bytes().replace(b'"pass"', b'"fail"', 1))
    assert run("attest", "verify", first, "--key", public).exit_code == 5


def test_people_of_no_group_are_counted(run: Run, key: Path, folder: Path, tmp_path: Path) -> None:
    """Of three people with a usable photo; the fourth was not measured."""
    output, groups = tmp_path / "out.json", tmp_path / "groups.csv"
    groups.write_text("person,sex,age\nobama,m,old\nbiden,,old\ncollins,,old\nnobody,f,\n")
    asked = ("--key", key, "--output", output, "--no-strata", "--attributes", groups)
    result = run("attest", folder, *asked, "--requirement", requirement(tmp_path, EASY))
    statement = json.loads(output.read_text())["statement"]
    assert statement["people_without_group"] == {"sex": 2, "age": 0}
    said = " ".join(result.stdout.split())
    assert "2 of the people who were measured have no group by sex" in said
    assert "no group by age" not in said


def test_what_this_data_cannot_decide_says_how_many_people_would(
    run: Run, key: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    asked = ("--key", key, "--output", output, "--no-strata")
    result = run("attest", folder, *asked, "--requirement", requirement(tmp_path, HARD))
    assert result.exit_code == 4, result.output
    assert "2,995 people needed" in " ".join(result.stdout.split())
    assert run("attest", "verify", output, "--key", f"{key}.pub").exit_code == 4
    result = run("attest", folder, *asked)  # the default, SP 800-63A-4, is by group
    assert result.exit_code == 4
    assert "no groups were given" in result.stdout
    easy = requirement(tmp_path, EASY)
    result = run("attest", folder, *asked, "--requirement", easy, "--gallery-size", "2")
    assert result.exit_code == 4  # one person enrolled is less than 90 % of two
    assert "too small" in result.stdout


def test_a_broken_requirement_holds_a_deployment_up(
    run: Run, key: Path, folder: Path, tmp_path: Path
) -> None:
    strict = requirement(
        tmp_path, 'name = "n"\nfpir = 0.97\nfnir = 0.01\nby_group = false\nconfidence = 0.6\n'
    )
    shutil.copy(PHOTOS / "biden.jpg", folder / "obama" / "obama2.jpg")  # never found
    output = tmp_path / "out.json"
    result = run(
        "attest", folder, "--key", key, "--output", output, "--requirement", strict, "--no-strata"
    )
    assert result.exit_code == 3, result.output


@pytest.mark.slow
def test_strata_are_measured_with_probes_and_with_both_degraded(
    run: Run, key: Path, folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    easy = requirement(tmp_path, EASY)
    run("attest", folder, "--key", key, "--output", output, "--requirement", easy)
    cells = json.loads(output.read_text())["statement"]["cells"]
    assert [(cell["stratum"], cell["degraded"]) for cell in cells] == [
        ("unchanged", "none"),
        *(
            (stratum, sides)
            for stratum in (
                "blur sigma 4 px", "brightness x 0.1", "JPEG quality 10", "turned 180 degrees"
            )
            for sides in ("probe", "both")
        ),
    ]  # fmt: skip
    # Galleries of one size have one threshold (tests/lab/attestation has others).
    assert {cell["gallery_persons"] for cell in cells} == {1}
    assert len({cell["threshold"] for cell in cells}) == 1


def test_a_collection_is_measured_without_photos(
    run: Run, key: Path, folder: Path, tmp_path: Path
) -> None:
    assert run("import", folder).exit_code in {0, 1}
    output = tmp_path / "out.json"
    result = run("attest", "--key", key, "--output", output, "default")
    assert result.exit_code == 4, result.output
    statement = json.loads(output.read_text())["statement"]
    assert statement["data"]["people"] == 3
    assert statement["data"]["templates"] == 4
    assert statement["policy"]["target_fpir"] == 0.01
    (cell,) = statement["cells"]
    assert (cell["fpir"]["searches"], cell["fnir"]["searches"]) == (3, 1)
    assert "obama" not in output.read_text()


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("empty", (), "has no photos"),
        ("people/biden", (), "has no photos"),
        ("people", ("--requirement", "none"), "neither a named requirement"),
        ("people", ("--attributes", "none.csv"), "cannot be read"),
        ("people", ("--compare", "none.json"), "cannot be read"),
        ("no-such-collection", (), "No database yet"),
        ("no-such-collection", ("--target-fpir", "0.1"), "are for folders"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence_and_status_2(
    run: Run,
    key: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    options: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = run("attest", source, "--key", key, "--output", "out.json", *options)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    assert not (tmp_path / "out.json").exists()


def test_an_output_that_cannot_be_written_is_known_before_anything_is_measured(
    run: Run, key: Path, folder: Path, tmp_path: Path
) -> None:
    for output in (tmp_path, tmp_path / "none" / "out.json"):
        result = run("attest", folder, "--key", key, "--output", output)
        assert result.exit_code == 2
        assert "cannot be written" in " ".join(result.output.split())
        assert "photos" not in result.output


def test_an_output_replaces_nothing_that_is_read(run: Run, key: Path, folder: Path) -> None:
    before = key.read_bytes()
    result = run("attest", folder, "--key", key, "--output", key)
    assert result.exit_code == 2
    assert "would be replaced" in " ".join(result.output.split())
    assert key.read_bytes() == before
    photo = next(Path(folder).glob("*/*"))
    before = photo.read_bytes()
    assert run("attest", folder, "--key", key, "--output", photo).exit_code == 2
    assert photo.read_bytes() == before


def test_another_key_does_not_verify(run: Run, key: Path, folder: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "out.json", tmp_path / "other.pem"
    run("attest", folder, "--key", key, "--output", output, "--no-strata")
    run("attest", "keygen", other)
    result = run("attest", "verify", output, "--key", f"{other}.pub")
    assert result.exit_code == 5
    assert "names another key" in " ".join(result.output.split())
