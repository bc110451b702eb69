"""Settings: docs/settings.md lists them all, and a wrong value is refused by its name."""

import re
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import MIB, Settings

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "settings.md").read_text()
NAME = r"LIKENESS_[A-Z_]*[A-Z]"
# Where a program reads variables of the environment.
SOURCES = [
    ROOT / "docker-compose.yml",
    ROOT / "docker-compose.gpu.yml",
    *(path for top in ("app", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")),
]
READ = rf"(?:environ(?:\.get)?[\[(]|getenv\(|envvar=|\$\{{)\s*[\"']?({NAME})"


def table(section: str) -> dict[str, str]:
    """The second column of a section's table, by the first."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return dict(re.findall(rf"^\| `({NAME})` \| (.*?) \|", text, re.MULTILINE))


def printed(default: Any) -> str:
    if default in (None, "", ()):
        return "unset"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, int) and default % MIB == 0 and default:
        return f"{default // MIB:,} MiB"
    if isinstance(default, int | float):
        return f"{default:,g}" if isinstance(default, float) else f"{default:,}"
    return f"`{default.value if isinstance(default, Enum) else default}`"


def test_the_page_lists_every_setting_and_its_default() -> None:
    sections = ("Listening", "Data", "Networks", "Limits of requests", "Imports into the service")
    listed: dict[str, str] = {}
    for section in sections:
        listed |= table(section)
    port = listed.pop("LIKENESS_PORT")
    fields = {name: field for name, field in Settings.model_fields.items() if name != "port"}
    assert listed == {f"LIKENESS_{n.upper()}": printed(f.default) for n, f in fields.items()}
    assert port == str(Settings.model_fields["port"].default)


def test_the_readme_states_the_same_defaults() -> None:
    rows = stated("README.md", "## Settings", r"\| (?P<names>`LIKENESS_.*?) \| (?P<values>.*?) \|")
    assert len(rows) > 20
    for name, value in rows:
        default = Settings.model_fields[name.removeprefix("LIKENESS_").lower()].default
        assert default in (None, "", ()) or quantity(value) == quantity(printed(default)), name


def test_the_page_of_limits_states_the_same_ones() -> None:
    pattern = r"\| .*? \| (?P<values>.*?) \| (?P<names>`[A-Z_`, ]+`)"
    rows = stated("docs/http.md", "### Limits", pattern)
    assert len(rows) > 12
    for name, value in rows:
        default = Settings.model_fields[name.lower()].default
        assert quantity(value) == quantity(printed(default)), name


def stated(page: str, heading: str, row: str) -> list[tuple[str, str]]:
    """Names of settings and their values, as the rows of a table have one or several of each."""
    text = (ROOT / page).read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
    found: list[tuple[str, str]] = []
    for cells in re.finditer(f"(?m)^{row}", text):
        names, values = re.findall(r"[A-Z_]{4,}", cells["names"]), cells["values"].split(", ")
        if len(names) == 1 or len(values) == 1:
            values = [cells["values"]] * len(names)
        found += zip(names, values, strict=True)
    return found


def quantity(text: str) -> str | float:
    """The quantity with which a text begins; the text itself if it begins with none."""
    units = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "million": 10**6}
    plain = text.strip("`")
    found = re.match(r"(\d+(?:,\d{3})*)(?![.\d])(?: (GiB|MiB|KiB|million))?", plain)
    return plain if found is None else int(found[1].replace(",", "")) * units.get(found[2], 1)


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_variable_that_is_read_is_documented() -> None:
    pages = PAGE + (ROOT / "CONTRIBUTING.md").read_text()
    read = {name for path in SOURCES for name in re.findall(READ, path.read_text())}
    assert "LIKENESS_API_KEY" in read, "the pattern finds something"
    assert sorted(read - set(re.findall(NAME, pages))) == []


def test_a_level_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKENESS_LOG_LEVEL", "warning")
    assert Settings().log_level == "WARNING"
    monkeypatch.setenv("LIKENESS_LOG_LEVEL", "loud")
    with pytest.raises(ValidationError, match="'DEBUG', 'INFO'"):
        Settings()
