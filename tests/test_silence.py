"""Nothing leaves the machine, and no file appears outside the data folder."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.watched import Watched, watch, why_not

ROOT = Path(__file__).parent.parent
LIKENESS = Path(sys.executable).parent / "likeness"
# ONNX Runtime's first report leaves 25 s after its import where nothing forbids it.
SERVE_SECONDS = 40

# Starts the service, uses it as a client on the same machine, and ends it.
USE_THE_SERVICE = """
import subprocess, sys, time, httpx
likeness, photo, seconds = sys.argv[1:]
until = time.monotonic() + float(seconds)
with subprocess.Popen([likeness, "serve"]) as service:
    try:
        with httpx.Client(base_url="http://127.0.0.1:8000", timeout=60, trust_env=False) as client:
            while True:
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
                if service.poll() is not None or time.monotonic() > until:
                    sys.exit("the service did not become ready")
            photo = {"image": open(photo, "rb").read()}
            client.post("/v1/enroll", data={"person_id": "a"}, files=photo).raise_for_status()
            (face,) = client.post("/v1/identify", files=photo).raise_for_status().json()["faces"]
            assert face["person_id"] == "a"
            client.get("/docs").raise_for_status()
        time.sleep(max(0.0, until - time.monotonic()))
    finally:
        service.terminate()
"""

Watch = Callable[..., Watched]


@pytest.fixture
def people(tmp_path: Path, photos: Path) -> Path:
    """Three, one of them with two photos, for there to be something to draw."""
    folder = tmp_path / "people"
    for number, names in enumerate((("obama", "obama2"), ("biden",), ("obama3",))):
        for name in names:
            (folder / str(number)).mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / f"{name}.jpg", folder / str(number))
    return folder


@pytest.fixture
def watched(tmp_path: Path) -> Watch:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)

    def run(*command: str | Path, seconds: float = 120) -> Watched:
        return watch(command, tmp_path, {}, seconds)

    return run


def imported_in(home: Path, **settings: str) -> str:
    """What ORT_DISABLE_TELEMETRY is after an import of ONNX Runtime by this package."""
    code = "import app.inference.session, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(home), **settings},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("settings", [{}, {"ORT_DISABLE_TELEMETRY": ""}])
def test_onnx_runtime_leaves_no_device_id(tmp_path: Path, settings: dict[str, str]) -> None:
    assert imported_in(tmp_path, **settings) == "1"
    assert list(tmp_path.iterdir()) == []


def test_what_the_operator_says_of_telemetry_stays(tmp_path: Path) -> None:
    code = "import app, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, env=environment, text=True).strip() == "0"


@pytest.mark.parametrize(
    "script",
    sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "scripts").glob("*.py")]),
    ids=lambda script: script.stem,
)
def test_a_script_imports_this_package_before_onnx_runtime(script: Path) -> None:
    """InsightFace sets the variable itself."""
    imports = []
    for node in ast.parse(script.read_text()).body:
        if isinstance(node, ast.Import):
            imports += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append(str(node.module).partition(".")[0])
    if "onnxruntime" in imports:
        assert "app" in imports[: imports.index("onnxruntime")]


def test_the_image_says_so_too() -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in (ROOT / "Dockerfile").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "doctor", "hygiene"])
def test_a_command_is_silent(watched: Watch, command: str) -> None:
    if command == "hygiene":  # of a database that is there
        assert watched(LIKENESS, "migrate").status == 0
    done = watched(LIKENESS, command)
    assert (done.status, done.sent, done.made) == (0, (), ()), done.output


@pytest.mark.slow
def test_an_import_is_silent(watched: Watch, people: Path) -> None:
    done = watched(LIKENESS, "import", people)
    assert (done.status, done.sent, done.made) == (0, (), ()), done.output


@pytest.mark.slow
def test_an_evaluation_and_its_report_are_silent(
    watched: Watch, people: Path, tmp_path: Path
) -> None:
    report = tmp_path / "data" / "report"
    done = watched(LIKENESS, "evaluate", people, "--output", report)
    assert (done.status, done.sent, done.made) == (0, (), ()), done.output
    assert "<svg" in (report / "report.html").read_text()


@pytest.mark.slow
def test_the_service_is_silent(watched: Watch, photos: Path) -> None:
    done = watched(
        sys.executable, "-c", USE_THE_SERVICE, LIKENESS, photos / "obama.jpg", str(SERVE_SECONDS)
    )
    assert (done.status, done.sent, done.made) == (0, (), ()), done.output


@pytest.mark.slow
def test_the_watch_sees_a_send_a_question_for_a_name_and_a_file(watched: Watch) -> None:
    """What the tests above believe in."""
    code = """
import os, pathlib, socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for to in (("127.0.0.1", 9), ("192.0.2.1", 443), ("127.0.0.1", 53)):
    try:
        udp.sendto(b"x", to)
    except OSError:
        pass
pathlib.Path.home().joinpath("id").write_text("x")
folder = os.open(".", os.O_RDONLY)
os.close(os.open("here", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
os.remove("here")
"""
    done = watched(sys.executable, "-c", code)
    assert done.status == 0, done.output
    assert ["192.0.2.1" in line for line in done.sent] == [True, False]
    assert {Path(path).name for path in done.made} == {"id", "here"}
