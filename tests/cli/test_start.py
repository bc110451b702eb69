"""What a start does without: packages that take longer to import than all of it may take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LATE = "alembic httpx jwt onnx scipy"
# In one process: what the first start did not import, the second one might.
STARTS = f"""
import json, sys
from app.cli.console import read_settings
from app.cli.serving import begin
for _ in range(2):
    services = begin(read_settings())
    from app.api.main import create_app
    app = create_app(services)
    print(*[name for name in {LATE.split()} if name in sys.modules])
    services.close()
print(json.dumps(app.openapi()))
"""
DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"


def imported(program: str, folder: Path) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"LIKENESS_DATA_DIR": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.removesuffix("\n")


@pytest.mark.slow
def test_a_first_and_a_later_start_import_nothing_that_only_few_requests_need(
    tmp_path: Path,
) -> None:
    """FastAPI's models, which a start does not build, make the same document when they are used."""
    first, later, document = imported(STARTS, tmp_path).split("\n")
    assert (first, later) == ("", "")
    assert json.loads(document) == json.loads(DOCUMENT.read_text())


def test_the_command_itself_imports_no_network_and_no_index(tmp_path: Path) -> None:
    program = (
        "import sys, app.cli.serve; "
        "print(*[n for n in ('fastapi', 'faiss', 'numpy', 'onnxruntime') if n in sys.modules])"
    )
    assert imported(program, tmp_path) == ""
