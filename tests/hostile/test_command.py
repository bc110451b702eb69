"""Which services `python -m tests.hostile` attacks."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile import __main__ as command


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        ({}, [], ["1", "1"]),
        ({"LIKENESS_PROCESSES": "4"}, [], ["4", "4"]),
        ({"LIKENESS_PROCESSES": "auto"}, ["--scheme", "http"], ["auto"]),
        ({"LIKENESS_PROCESSES": "4"}, ["--processes", "2", "--processes", "1"], list("2211")),
    ],
)
def test_the_number_of_processes_is_the_options_or_the_environments(
    environment: dict[str, str],
    arguments: list[str],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []

    @contextmanager
    def running(folder: Path, scheme: str, **settings: str) -> Iterator[tuple[None, None]]:
        started.append(settings["LIKENESS_PROCESSES"])
        yield None, None

    monkeypatch.setattr(command, "running", running)
    monkeypatch.delenv("LIKENESS_PROCESSES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # No attack has this name, so nothing is sent.
    monkeypatch.setattr("sys.argv", ["hostile", "no such attack", *arguments])
    assert command.main() == 0
    assert started == expected
