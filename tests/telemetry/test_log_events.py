"""docs/logs.md lists every event that the service writes, with its level and fields."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "logs.md").read_text()
LOGS = ROOT / "app" / "telemetry" / "logs.py"
ROW = re.compile(r"^\| `(.+?)` \| ([\w, ]+) \| (.*?) ?\| .* \| .* \|$", re.MULTILINE)
# Chosen when the line is written.
LEVELS = {"request": {"debug", "info"}, "request failed": {"debug", "warning"}}


@dataclass
class Event:
    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


def calls() -> Iterator[tuple[ast.Module, ast.Call, str]]:
    """Every call of `log`, in its module."""
    for path in sorted((ROOT / "app").rglob("*.py")):
        if "log(" not in (text := path.read_text()):
            continue  # a module takes milliseconds to parse
        module = ast.parse(text)
        for node in ast.walk(module):
            match node:
                case ast.Call(func=ast.Name("log")):
                    yield module, node, f"{path.relative_to(ROOT)}:{node.lineno}"


def text_of(module: ast.Module, argument: ast.expr) -> str | None:
    """A text, or a constant of the module; None if it is made when the line is written."""
    match argument:
        case ast.Constant(str(text)):
            return text
        case ast.Name(name):
            for node in module.body:
                match node:
                    case ast.Assign(targets=[ast.Name(given)], value=ast.Constant(str(text))):
                        if given == name:
                            return text
    return None


def written() -> dict[str, Event]:
    found: dict[str, Event] = {}
    for module, call, where in calls():
        text = text_of(module, call.args[1])
        assert text is not None, (
            f"{where}: give what differs as a field, so that the event is fixed"
        )
        event = found.setdefault(text, Event())
        match call.args[0]:
            case ast.Attribute(ast.Name("logging"), level):
                event.levels.add(level.lower())
            case _:
                event.levels |= LEVELS[text]
        names = [keyword.arg for keyword in call.keywords]
        assert None not in names, f"{where}: name the fields"
        event.fields |= {name for name in names if name is not None}
        if len(call.args) > 2:
            event.fields.add("exception")
    return found


def test_the_page_lists_every_event_with_its_level_and_fields() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) == PAGE.count("\n| `"), "a row that cannot be read"
    listed = {
        text: Event(set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields)))
        for text, levels, fields in rows
    }
    assert len(listed) == len(rows), "an event is listed twice"
    assert listed == written()


def test_there_is_no_other_way_to_write_an_event() -> None:
    for path in (ROOT / "app").rglob("*.py"):
        text = path.read_text()
        assert path == LOGS or "LOGGER_NAME" not in text, path
        assert not re.search(r"import .*\blog as\b|import logs\b|telemetry import", text), path
