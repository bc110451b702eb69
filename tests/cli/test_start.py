"""What a start does without: packages that take longer to import than all of it may take."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    return answer.stdout.removesuffix("\n")


def test_a_first_start_imports_and_builds_nothing_that_only_few_requests_need(
    tmp_path: Path,
) -> None:
    """FastAPI's models, which a start does not build, make the same document when they are used."""
    program = BEGIN.format(then=f"{SHOW_LATE}\nprint(json.dumps(app.openapi()))")
    late, document = imported(program, tmp_path).split("\n")
    assert late == ""
    assert json.loads(document) == json.loads(DOCUMENT.read_text())


def test_a_later_start_imports_nothing_that_only_few_requests_need(tmp_path: Path) -> None:
    build_services(Settings(data_dir=tmp_path)).close()
    assert imported(BEGIN.format(then=SHOW_LATE), tmp_path) == ""


def test_the_command_itself_imports_no_network_and_no_index(tmp_path: Path) -> None:
    program = (
        "import sys, app.cli.serve; "
        "print(*[n for n in ('fastapi', 'faiss', 'numpy', 'onnxruntime') if n in sys.modules])"
    )
    assert imported(program, tmp_path) == ""
