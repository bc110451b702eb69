"""A command whose packages are an extra says so before it works."""

import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run

COMMANDS = {
    "matplotlib": ("lab", ["evaluate", "people", "--output", "report"]),
    "onnx": ("lab", ["models", "pack", "mine"]),
    "insightface": ("insightface", ["models", "pull", "buffalo_s"]),
}


@pytest.mark.parametrize("package", COMMANDS)
def test_a_missing_package_is_named_with_its_extra(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's mark for: it cannot be imported
    monkeypatch.chdir(tmp_path)
    extra, arguments = COMMANDS[package]
    answer = run(*arguments)
    assert answer.exit_code == 2, answer.output
    assert f"needs {package}, which the service does not need. Install the extra {extra}: " in (
        " ".join(answer.stderr.split())
    )
    assert list(tmp_path.iterdir()) == []
