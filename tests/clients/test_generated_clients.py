"""Clients generated from the OpenAPI document compile, and talk to the running service.

`make clients` installs the generators.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.services import build_services
from app.settings import Settings
from tests.api.conftest import run_server

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON_GENERATOR = ROOT / ".venv-clients" / "bin" / "openapi-python-client"
NODE_TOOLS = HERE / "node_modules" / ".bin"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("service"))
    with run_server(build_services(settings)) as url:
        yield url


@pytest.fixture
def document(service: str, tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_text(httpx.get(f"{service}/openapi.json").text)
    return path


def run(*command: Any, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python(service: str, document: Path, photos: Path, tmp_path: Path) -> None:
    if not PYTHON_GENERATOR.exists():
        pytest.skip("openapi-python-client is not installed: make clients")
    package = tmp_path / "likeness_client"
    options = ("--path", document, "--output-path", package, "--meta", "none")
    run(PYTHON_GENERATOR, "generate", *options, cwd=tmp_path)
    run(sys.executable, "-m", "compileall", "-q", package, cwd=tmp_path)
    shutil.copy(HERE / "client.py", tmp_path)
    arguments = (service, photos / "obama.jpg", photos / "obama2.jpg")
    said = json.loads(run(PYTHON_GENERATOR.with_name("python"), "client.py", *arguments,
                          cwd=tmp_path))  # fmt: skip
    assert said == {
        "faces": 1,
        "enrolled": 1,
        "match": True,
        "person": "python",
        "refused": "person_not_found",
    }


def test_typescript(service: str, document: Path, photos: Path, tmp_path: Path) -> None:
    if shutil.which("node") is None or not NODE_TOOLS.exists():
        pytest.skip("Node.js or openapi-typescript is not installed: make clients")
    for name in ("client.ts", "tsconfig.json", "package.json"):
        shutil.copy(HERE / name, tmp_path)
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    run(NODE_TOOLS / "openapi-typescript", document, "-o", "api.d.ts", cwd=tmp_path)
    run(NODE_TOOLS / "tsc", "--project", "tsconfig.json", cwd=tmp_path)
    arguments = (service, photos / "biden.jpg", photos / "biden.jpg")
    said = json.loads(run("node", "client.js", *arguments, cwd=tmp_path))
    assert said == {
        "faces": 1,
        "enrolled": 1,
        "match": True,
        "person": "typescript",
        "refused": "person_not_found",
    }
