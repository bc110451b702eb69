"""What a start does without: packages that take longer to import than all of it may take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.services import build_services
from app.settings import Settings

LATE = "alembic httpx jwt onnx scipy"
BEGIN = """
import json, sys
from app.cli.console import read_settings
from app.cli.serving import begin
services = begin(read_settings())
from app.api.main import create_app
app = create_app(services)
{then}
services.close()
"""
SHOW_LATE = f"print(*[name for name in {LATE.split()} if name in sys.modules])"
DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"


def imported(program: str, folder: Path) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"LIKENESS_DATA_DIR": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


@pytest.mark.parametrize("database", ["new", "current"])
def test_a_start_imports_nothing_that_only_few_requests_need(tmp_path: Path, database: str) -> None:
    if database == "current":
        build_services(Settings(data_dir=tmp_path)).close()
    assert imported(BEGIN.format(then=SHOW_LATE), tmp_path) == ""


def test_models_that_are_built_when_they_are_used_make_the_same_document(tmp_path: Path) -> None:
    """FastAPI's, which a start does not build."""
    program = BEGIN.format(then="print(json.dumps(app.openapi()))")
    assert json.loads(imported(program, tmp_path)) == json.loads(DOCUMENT.read_text())


def test_the_command_itself_imports_no_network_and_no_index(tmp_path: Path) -> None:
    program = (
        "import sys, app.cli.serve; "
        "print(*[n for n in ('fastapi', 'faiss', 'numpy', 'onnxruntime') if n in sys.modules])"
    )
    assert imported(program, tmp_path) == ""
