"""What a start does without: packages that take longer to import than all of it may take."""

import os
import subprocess
import sys
from pathlib import Path

from app.services import build_services
from app.settings import Settings

LATE = "alembic httpx jwt onnx scipy"
BEGIN = f"""
import sys
from app.cli.console import read_settings
from app.cli.serving import begin
services = begin(read_settings())
from app.api.main import create_app
create_app(services)
print(*[name for name in {LATE.split()} if name in sys.modules])
services.close()
"""


def imported(program: str, folder: Path) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"LIKENESS_DATA_DIR": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_a_start_with_a_current_database_imports_nothing_that_only_few_requests_need(
    tmp_path: Path,
) -> None:
    build_services(Settings(data_dir=tmp_path)).close()  # the database is made
    assert imported(BEGIN, tmp_path) == ""


def test_the_command_itself_imports_no_network_and_no_index(tmp_path: Path) -> None:
    program = (
        "import sys, app.cli.serve; "
        "print(*[n for n in ('fastapi', 'faiss', 'numpy', 'onnxruntime') if n in sys.modules])"
    )
    assert imported(program, tmp_path) == ""
