"""Commands whose standard streams are closed, full, or read by nobody."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.settings import Settings
from app.store.schema import opened_database
from tests.cli.conftest import Run

pytestmark = pytest.mark.slow

LIKENESS = [sys.executable, "-c", "from app.cli import main; main()"]
REASONS = {
    "closed": "Writing failed. Standard output cannot be written: Bad file descriptor.",
    "full": "There is no space left on the disk. Standard output cannot be written: No space left "
    "on device.",
    "left": "Writing failed. Standard output cannot be written: Broken pipe.",
}


@pytest.fixture
def ended(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A command that was run over a database, with the descriptors that `redirected` (of a shell)
    leaves; its standard output is a pipe without a reader."""
    with opened_database(Settings().resolved_database_url):
        pass

    def run(redirected: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        read, write = os.pipe()
        os.close(read)
        try:
            return subprocess.run(
                ["sh", "-c", f'exec "$@" {redirected}', "sh", *LIKENESS, *arguments],
                env=environment, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        finally:
            os.close(write)

    return run


REDIRECTED = {"closed": ">&-", "full": ">/dev/full", "left": ""}
# Each command with one of them, and one command with each.
COMMANDS = [
    (("keys", "list"), "closed"), (("keys", "list"), "full"), (("keys", "list"), "left"),
    (("--version",), "closed"), (("--version",), "left"),
    *(pytest.param(command, "full", marks=pytest.mark.slow)
      for command in (("audit", "export"), ("backup", "-"), ("serve",))),
]  # fmt: skip


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_output_that_cannot_be_written_is_one_line(
    ended: Callable[..., subprocess.CompletedProcess[str]],
    command: tuple[str, ...], output: str,
) -> None:  # fmt: skip
    done = ended(REDIRECTED[output], *command)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "not encrypted" not in line]
    assert lines[-1:] == [REASONS[output]]
    assert "Traceback" not in done.stderr
    if command[0] != "backup":
        assert len(lines) == 1


def test_no_key_is_created_whose_token_cannot_be_printed(
    ended: Callable[..., subprocess.CompletedProcess[str]], run: Run
) -> None:
    """With it, every call would need a token that nobody has."""
    done = ended(">&-", "keys", "create", "--name", "a", "--scope", "all")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == REASONS["closed"]
    shown = run("keys", "list")
    assert shown.exit_code == 0
    assert "all" not in shown.stdout


def test_a_closed_input_is_empty(
    ended: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = ended("<&-", "restore", "-")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_no_file_becomes_a_standard_stream(environment: dict[str, str], tmp_path: Path) -> None:
    """What a library writes to standard error must not get into a file."""
    program = (
        "import sys; from app.cli import streams; streams.prepare(); "
        f"sys.exit(open({str(tmp_path / 'file')!r}, 'w').fileno())"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program],
        env=environment, check=False,
    )  # fmt: skip
    assert done.returncode > 2
