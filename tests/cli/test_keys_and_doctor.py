"""Keys that change while the gallery stays, and what doctor says and repairs."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from app.cli.commands import app
from app.decision.calibration import Calibration
from app.encryption.keys import new_key_line
from app.inference.cpu_engine import Cpu
from app.services import Services, build_services
from app.settings import Settings
from app.store.records import NewTemplate
from tests.writing import enroll_person

KEY_FILE = "LIKENESS_ENCRYPTION_KEY_FILE"


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def use_keys(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> None:
    file = folder / "keys"
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    monkeypatch.setenv(KEY_FILE, str(file))


def services() -> Services:
    return build_services(Settings())


def enroll(*people: str) -> None:
    running = services()
    for i, person in enumerate(people):
        vector = np.eye(running.pack.recogniser.dimension, dtype=np.float32)[i]
        enroll_person(running.gallery, "default", person, None, [NewTemplate(vector, person)])
    running.close()


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_from_plain_to_one_key_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = new_key_line("one"), new_key_line("two")
    enroll("ada", "bob")
    assert "2 templates are stored unencrypted" in run("doctor")
    assert "no encryption key" in run("encryption", "rotate", code=2).lower()
    use_keys(monkeypatch, tmp_path, one)
    enroll("eve")  # ada's vector again, under another name
    assert "1 encrypted, 2 plain" in run("encryption", "status")
    assert "mixed (key one): 2 are plain" in run("doctor")
    assert "2 persons' keys are wrapped by the active key" in run("encryption", "rotate")
    assert "every template is encrypted, key one" in run("doctor")
    use_keys(monkeypatch, tmp_path, two, one)
    assert "key one: 3 persons" in run("encryption", "status")
    run("encryption", "rotate")
    use_keys(monkeypatch, tmp_path, two)
    assert "No fault was found" in run("doctor")
    monkeypatch.delenv(KEY_FILE)
    assert "two" in run("doctor", code=2)


def test_rotate_names_a_person_whose_data_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = new_key_line("one"), new_key_line("two")
    use_keys(monkeypatch, tmp_path, one)
    enroll("ada", "bob")
    running = services()
    with running.gallery.store.database.writing() as connection:
        damaged = "UPDATE persons SET data_key = zeroblob(61) WHERE person_id = 'ada'"
        connection.exec_driver_sql(damaged)
    running.close()
    use_keys(monkeypatch, tmp_path, two, one)
    shown = run("encryption", "rotate", code=1)
    assert "data of the person 'ada' cannot be decrypted" in shown
    assert "1 persons' keys are wrapped by the active key" in shown


def test_doctor_checks_the_collections_beside_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_keys(monkeypatch, tmp_path, new_key_line("one"))
    enroll("ada")
    running = services()
    running.gallery.create_collection("staff", {})
    with running.gallery.store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE persons SET data_key = zeroblob(61)")
    running.close()
    shown = run("doctor", code=1)
    assert "default: not checked. Stored data cannot be decrypted" in shown
    assert "staff: 0 templates, the index equals the database" in shown


def test_doctor_finds_and_repairs_an_index_that_is_not_true(data: Path) -> None:
    running = services()
    vectors = np.random.default_rng(0).standard_normal((1024, running.pack.recogniser.dimension))
    checked = [running.gallery.check_embedding(vector) for vector in vectors]
    new = [NewTemplate(vector, str(number)) for number, vector in enumerate(checked)]
    enroll_person(running.gallery, "default", "ada", None, new)
    running.close()  # keeps a snapshot, which smaller collections have none of
    running = services()
    with running.gallery.store.database.writing() as connection:
        connection.execute(text("DELETE FROM templates WHERE id = 1"))
    running.gallery.store.close()
    assert "1 are not in the database" in run("doctor", code=1)
    assert "the index equals the database" in run("doctor", "--repair")
    assert "No fault was found" in run("doctor")


def test_doctor_names_the_limit_of_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert f"open files │ {soft}, which serve raises to {hard} │" in run("doctor")


@pytest.mark.slow
def test_doctor_advises_a_collection_to_calibrate_on_itself() -> None:
    advice = "likeness calibrate default"
    enroll(*(f"p{number}" for number in range(99)))
    assert advice not in run("doctor")
    enroll(*(f"p{number}" for number in range(100)))
    assert advice in run("doctor")


@pytest.mark.slow
def test_doctor_advises_to_calibrate_again_after_an_earlier_version() -> None:
    enroll(*(f"p{number}" for number in range(100)))
    running = services()
    shipped = running.calibrations.pack
    assert shipped is not None
    for known, advised in ((shipped, False), (_of_an_earlier_version(shipped), True)):
        store, record = running.gallery.store.calibrations, running.gallery.require("default")
        store.set(record, known.calibration_id, known.content())
        assert ("likeness calibrate default, again" in run("doctor")) is advised
    running.close()


def _of_an_earlier_version(calibration: Calibration) -> Calibration:
    content = {**calibration.content(), "score_exponents": None}
    return Calibration.model_validate(content)


def test_doctor_names_a_detector_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_CPU_PRECISION", "int8")
    monkeypatch.setattr(Cpu, "of_this_machine", lambda: Cpu("", frozenset({"avx_vnni"})))
    assert "runs on │ CPUExecutionProvider, detector in int8 │" in run("doctor")
    monkeypatch.setattr(Cpu, "of_this_machine", lambda: Cpu("", frozenset({"avx2"})))
    assert "detector in int8; this" in run("doctor")  # CPU has no instructions for it


@pytest.mark.parametrize("value", ["1", "TRUE", " yes"])
def test_doctor_sees_that_telemetry_is_off(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    reported = run("doctor")
    assert "telemetry │ off" in reported
    assert "usage reports" not in reported


def test_doctor_says_what_telemetry_does_where_the_operator_switched_it_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    reported = run("doctor")  # which is no reason to refuse anything
    assert "ONNX Runtime sends usage reports to Microsoft" in reported
    assert "ORT_DISABLE_TELEMETRY is '0'" in reported
    assert "unset that variable or set it to 1" in reported


@pytest.mark.slow
def test_doctor_finds_and_changes_what_no_answer_can_carry(data: Path, tmp_path: Path) -> None:
    enroll("ada", "jos\u00e9", "other")
    running = services()
    with running.gallery.store.database.writing() as connection:
        for statement, value in (
            ("UPDATE persons SET metadata = :v WHERE person_id = 'ada'", '{"note": "\\ud83d"}'),
            ("UPDATE persons SET person_id = :v WHERE person_id = 'other'", "jose\u0301"),
        ):
            connection.execute(text(statement), {"v": value})
    running.close()
    said = run("doctor", code=1)
    assert "person ada in default: metadata.note contains U+D83D (lone surrogate)" in said
    assert "1 rows have metadata that is shown corrected" in said
    clash = r"$'jose\U00000301' $'jos\U000000e9'"
    assert f"likeness hygiene default --merge {clash}" in said
    kept = tmp_path / "kept.jsonl"
    assert "1 rows were changed" in run("doctor", "--fix-metadata", str(kept), code=1)
    assert json.loads(kept.read_text())["json"] == '{"note": "\\ud83d"}'
    assert kept.stat().st_mode & 0o077 == 0
    again = run("doctor", "--fix-metadata", str(kept), code=2)
    assert "Writing failed" in again
    assert "File exists" in again
    assert "The person's id is jos\u00e9 2 now" in run(
        "hygiene", "--rename", "jose\u0301", "jose\u0301 2"
    )
    assert "No fault was found" in run("doctor")
