"""The installed command, run as its users run it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli import import_gallery
from app.gallery.encryption.keys import parse_keys
from app.importing.outcomes import Counts, Outcome, Result
from tests.ports import free_port

LIKENESS = Path(sys.executable).parent / "likeness"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LIKENESS_")}
    return {**clean, "LIKENESS_DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200"}


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def call(*arguments: str | Path, **settings: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [LIKENESS, *map(str, arguments)],
            env={**environment, **settings},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return call


@pytest.fixture
def people(tmp_path: Path, photos: Path) -> Path:
    """A folder of people with everything that such folders have in them."""
    folder = tmp_path / "people"
    for person, files in {
        "Barack Obama": ["obama.jpg", "obama2.jpg"],
        "biden": ["biden.jpg"],
    }.items():
        (folder / person).mkdir(parents=True)
        for file in files:
            shutil.copy(photos / file, folder / person)
    (folder / "biden" / "note.txt").write_text("not a photo")
    (folder / "biden" / "broken.JPG").write_bytes(b"\xff\xd8\xff broken")
    (folder / "nobody").mkdir()
    (folder / "readme.md").write_text("not a photo")
    (folder / "biden" / "leads-out.jpg").symlink_to(photos / "obama.jpg")
    return folder


def test_help_names_every_command(run: Run) -> None:
    text = run("--help").stdout
    for command in ("serve", "import", "models", "doctor", "calibrate", "evaluate", "migrate"):
        assert command in text


def test_blas_does_not_spin(environment: dict[str, str]) -> None:
    """It is told before NumPy is loaded, and only where its user did not say otherwise."""
    script = (
        "import os, sys, types, app.cli\n"
        "tell = lambda: print('numpy' in sys.modules, os.environ['OPENBLAS_THREAD_TIMEOUT'])\n"
        "sys.modules['app.cli.commands'] = types.SimpleNamespace(app=tell)\n"
        "app.cli.main()"
    )
    for given, kept in (({}, "20"), ({"OPENBLAS_THREAD_TIMEOUT": "26"}, "26")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**environment, **given}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout.split() == ["False", kept], done.stderr


def test_import_reports_every_file_and_runs_again_safely(
    run: Run, people: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.csv"
    first = run("import", people, "--report", report)
    assert first.returncode == 1, first.stderr  # one photo is broken
    with report.open() as file:
        rows = {
            Path(row["place"]).name: (row["result"], row["reason"]) for row in csv.DictReader(file)
        }
    assert rows == {
        "obama.jpg": ("enrolled", ""),
        "obama2.jpg": ("enrolled", ""),
        "biden.jpg": ("enrolled", ""),
        "broken.JPG": ("rejected", "unreadable_image"),
    }
    again = run("import", people)
    assert re.search(r"skipped\s.*already_enrolled\s.*3", again.stdout)
    assert "2 persons, 3 faces" in run("doctor").stdout


def test_import_into_another_collection_makes_it(run: Run, people: Path) -> None:
    (people / "biden" / "broken.JPG").unlink()
    assert run("import", people, "--collection", "press").returncode == 0
    assert "0 persons, 0 faces" in run("doctor").stdout


def test_import_of_nothing(run: Run, tmp_path: Path) -> None:
    answer = run("import", tmp_path / "absent")
    assert answer.returncode == 2
    assert "is no folder, .csv" in answer.stderr


def test_import_by_the_script_and_with_a_gate(
    run: Run, people: Path, environment: dict[str, str]
) -> None:
    (people / "biden" / "broken.JPG").unlink()
    gate = '{"min_face_size_px": 4000}'
    assert "face_too_small" in run("import", people, "--gate", gate).stdout
    wrong = run("import", people, "--gate", '{"min": 1}')
    assert wrong.returncode == 2
    assert "--gate.min: Extra inputs" in wrong.stderr
    script = Path(__file__).parents[2] / "scripts" / "import_gallery.py"
    done = subprocess.run(
        [sys.executable, script, people, "--on-error", "stop", "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["enrolled"] == 3, done.stderr


def test_progress_for_programs(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(import_gallery, "PLAIN_LINE_EVERY_S", 0)
    counts = Counts()
    with import_gallery._progress(4, counts, as_json=True) as tell:
        for result in (Result.ENROLLED, Result.REJECTED):
            outcome = Outcome("a", "ada", result, "no_face" if result is Result.REJECTED else "")
            counts(outcome)
            tell(outcome)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["rows"], first["total"], first["enrolled"], first["rejected"]) == (1, 4, 1, 0)
    assert second["reasons"][1] == {"result": "rejected", "reason": "no_face", "rows": 1}
    assert second["rows_per_second"] > 0
    assert second["seconds_left"] >= 0


def test_models_are_listed_and_verified(run: Run) -> None:
    assert "default" in run("models", "list").stdout
    assert "intact are detector.onnx" in run("models", "verify").stdout


def test_a_changed_network_stops_the_start(run: Run, tmp_path: Path) -> None:
    default = Path(__file__).parents[2] / "models" / "default"
    pack = shutil.copytree(default, tmp_path / "pack")
    with (pack / "recogniser.onnx").open("ab") as file:
        file.write(b"\0")
    for command in (["models", "verify"], ["serve"], ["doctor"]):
        answer = run(*command, LIKENESS_PACK=str(pack))
        assert answer.returncode == 2
        message = " ".join(answer.stderr.split())
        assert "recogniser.onnx is not the file" in message
        assert "Restore the file" in message
        assert "Traceback" not in message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"LIKENESS_PACK": "absent"}, "no model pack 'absent'"),
        ({"LIKENESS_DEVICE": "cuda"}, "LIKENESS_DEVICE=cpu"),
        ({"LIKENESS_DEVICE": "tpu"}, "LIKENESS_DEVICE=tpu"),
        ({"LIKENESS_PORT": "x"}, "LIKENESS_PORT=x"),
        ({"LIKENESS_DATABASE_URL": "mysql://x/y"}, "use SQLite or PostgreSQL"),
    ],
)
def test_settings_that_cannot_be(run: Run, settings: dict[str, str], said: str) -> None:
    answer = run("serve", **settings)
    assert answer.returncode == 2
    assert said in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr


class Service:
    """`likeness serve` as a process of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._environment = {**environment, "LIKENESS_PORT": str(self.port)}
        self.process: subprocess.Popen[str] | None = None
        self._clients: list[httpx.Client] = []

    def start(self) -> httpx.Client:
        self.process = subprocess.Popen(
            [LIKENESS, "serve"],
            env={**self._environment, "LIKENESS_LOG_FORMAT": "json"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self._clients.append(client)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if client.get("/readyz").status_code == 200:
                    return client
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError("the service did not become ready")

    def end(self, how: signal.Signals) -> tuple[str, str]:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.communicate(timeout=30)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.returncode is None:
            self.end(signal.SIGKILL)


@pytest.fixture
def service(environment: dict[str, str]) -> Iterator[Service]:
    service = Service(environment)
    yield service
    service.close()


def test_serve_survives_kill_9_with_all_it_acknowledged(service: Service, photos: Path) -> None:
    photo = {"image": (photos / "obama.jpg").read_bytes()}
    client = service.start()
    client.post("/v1/enroll", data={"person_id": "obama"}, files=photo).raise_for_status()
    service.end(signal.SIGKILL)
    client = service.start()
    probe = {"image": (photos / "obama2.jpg").read_bytes()}
    (face,) = client.post("/v1/identify", files=probe).json()["faces"]
    assert face["person_id"] == "obama"
    out, err = service.end(signal.SIGTERM)
    assert service.process is not None
    assert service.process.returncode in (0, -signal.SIGTERM)
    assert f"http://localhost:{service.port}/docs" in out
    assert f"http://localhost:{service.port}/v1" in out
    events = [json.loads(line) for line in err.splitlines()]
    assert any(e["event"] == "request" and e["route"] == "/v1/identify" for e in events)
    assert "obama" not in err


def test_a_port_that_is_taken_is_told(service: Service, run: Run) -> None:
    service.start()
    answer = run("serve", LIKENESS_PORT=str(service.port))
    assert answer.returncode != 0
    assert "address already in use" in answer.stderr


def test_calibrate_says_what_it_needs(run: Run) -> None:
    early = run("calibrate")
    assert early.returncode == 2
    assert "0 people are too few" in " ".join(early.stderr.split())
    assert "serves again" in run("calibrate", "--reset").stdout
    nowhere = run("calibrate", "nowhere")
    assert nowhere.returncode == 2
    assert "There is no collection 'nowhere'" in " ".join(nowhere.stderr.split())


def test_a_generated_key_is_one_line_that_can_be_read(run: Run) -> None:
    made = run("keys", "generate", "--id", "prod-1", COLUMNS="20")
    assert made.returncode == 0, made.stderr
    (key,) = parse_keys(made.stdout.encode(), "stdout")
    assert key.key_id == "prod-1"
    assert made.stdout.count("\n") == 1
    assert run("keys", "generate", "--id", "a key").returncode == 2


def test_migrate_says_first_and_does_then(run: Run, tmp_path: Path) -> None:
    would = run("migrate", "--dry-run")
    assert would.returncode == 0, would.stderr
    assert "would run 0001 First tables" in would.stdout
    done = run("migrate")
    assert "ran 0001 First tables" in done.stdout
    assert "up to date" in run("migrate", "--dry-run").stdout
    nowhere = run("migrate", LIKENESS_DATABASE_URL="postgresql://u:secret@127.0.0.1:1/likeness")
    assert nowhere.returncode == 2
    assert "Check that the server runs" in " ".join(nowhere.stderr.split())
    assert "secret" not in nowhere.stdout + nowhere.stderr
