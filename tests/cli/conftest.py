"""Runs commands within the tests' process: starting Python for each would take seconds."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from app.cli.commands import app

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def photos(small_photos: Path) -> Path:
    """Small ones: what matters here is what a command reports."""
    return small_photos


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a new user with a data folder of their own."""
    for name in [name for name in os.environ if name.startswith("LIKENESS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("LIKENESS_PORT", "0")  # the usual one may be in use here
    monkeypatch.setenv("COLUMNS", "200")
    return dict(os.environ)


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """run("import", folder, LIKENESS_PACK="other"): the outcome, with `exit_code` and texts."""

    def call(*arguments: str | Path, **settings: str) -> Result:
        return CliRunner().invoke(app, [*map(str, arguments)], env=settings)

    return call
