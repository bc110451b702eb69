"""A command takes the name of its collection as an argument or as --collection."""

import pytest
from rich.table import Table
from typer.testing import CliRunner

from app.cli.commands import app
from app.cli.console import collection_name, err, out, warn


def test_it_is_an_argument_or_an_option_or_the_default() -> None:
    assert collection_name("staff", None) == "staff"
    assert collection_name(None, "staff") == "staff"
    assert collection_name("staff", "staff") == "staff"
    assert collection_name(None, None) == "default"


@pytest.mark.parametrize(
    "command", [["hygiene"], ["calibrate"], ["models", "migrate", "--to", "default"]]
)
def test_two_names_are_refused(command: list[str]) -> None:
    two = CliRunner().invoke(
        app, [*command, "staff", "--collection", "guests"], env={"COLUMNS": "200"}
    )
    assert two.exit_code == 2
    assert "names the collection 'staff', and --collection 'guests'. Give one" in two.output


@pytest.mark.parametrize("value", ["65", "0", "many"])
def test_one_mistake_in_a_setting_is_one_line(value: str) -> None:
    wrong = CliRunner().invoke(app, ["doctor"], env={"LIKENESS_PROCESSES": value})
    assert wrong.exit_code == 2
    (line,) = wrong.output.splitlines()
    assert line.startswith(f"LIKENESS_PROCESSES={value}: Input should be ")
    assert line.endswith(" or 'auto'")


def test_a_terminal_does_not_obey_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Names in archives and answers of servers can have sequences that clear a screen."""
    hostile = "ann\x1b]0;title\x07\x1b[2J\r\x9b1m/1.jpg"
    warn(hostile)
    err.print(hostile, markup=False)
    table = Table("person")
    table.add_row(hostile)
    err.print(table)
    warn("two\nlines and a\ttab")
    out.print(hostile, markup=False)
    shown = r"ann\x1b]0;title\x07\x1b[2J\x0d\x9b1m/1.jpg"
    standard, printed = capsys.readouterr()
    assert standard == f"{shown}\n"
    assert printed.count(shown) == 3
    assert {one for one in printed if not one.isprintable()} <= {"\n", "\t"}
    assert "two\nlines" in printed
