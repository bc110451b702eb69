"""docs/cli.md lists every command with its arguments, options and defaults, as they are."""

import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from app.cli.commands import COMMANDS

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
MARK = "<!-- commands -->\n"


def test_the_page_lists_the_commands_as_they_are() -> None:
    """`make cli-docs` writes it."""
    text = PAGE.read_text(encoding="utf-8")
    whole = text.partition(MARK)[0] + MARK + written()
    if os.environ.get("UPDATE_CLI"):
        PAGE.write_text(whole, encoding="utf-8")
        return
    assert text == whole, "the commands have changed: make cli-docs, and look at the diff"


def written() -> str:
    return "".join(
        f"\n## `likeness {name}`\n{''.join(sections(name, lazy.load(name)))}"
        for name, lazy in COMMANDS.items()
    )


def sections(name: str, command: Any) -> Iterator[str]:
    """The text of a command, then those of the commands below it."""
    yield f"\n{sentences(command.help)}\n"
    below = getattr(command, "commands", None)
    if below is None:
        yield table(name, command.params)
        return
    for word, one in below.items():
        yield f"\n### `likeness {name} {word}`\n\n{sentences(one.help)}\n"
        yield table(f"{name} {word}", one.params)


def table(name: str, parameters: list[Any]) -> str:
    shown = [one for one in parameters if not getattr(one, "hidden", False)]
    words = [word(one) for one in shown if one.param_type_name == "argument"]
    options = " [OPTIONS]" if any(one.param_type_name == "option" for one in shown) else ""
    usage = f"\n```\nlikeness {' '.join([name, *words])}{options}\n```\n"
    if not shown:
        return usage
    lines = [f"| {title(one)} | {default(one)} | {cell(one.help)} |" for one in shown]
    return usage + "\n| | default | meaning |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def word(argument: Any) -> str:
    dots = "..." if argument.nargs == -1 else ""
    name = argument.metavar or argument.name.upper()
    return f"{name}{dots}" if argument.required else f"[{name}{dots}]"


def title(one: Any) -> str:
    if one.param_type_name == "argument":
        return f"`{word(one).strip('[]')}`"
    return ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))


def default(one: Any) -> str:
    if one.required:
        return "required"
    value = one.default
    if value in (None, "", (), []):
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def cell(text: str | None) -> str:
    return sentences(text).replace("|", "\\|")


def sentences(text: str | None) -> str:
    """One line, without the marks of the terminal."""
    return " ".join((text or "").replace("\b", "").split())
