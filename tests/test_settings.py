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


OTHERS = "\n## Read elsewhere\n"  # the section of variables that are not settings
# The words for a regular expression.
PATTERNS = {r"^(/[^/?#]+)*$": "`/part`, or several such parts; no `?` and no `#`"}


def table(column: int) -> dict[str, str]:
    """A column of the tables of settings, by the name in column 0."""
    settings, found, _ = PAGE.partition(OTHERS)
    assert found
    rows = re.findall(rf"^\| `({NAME})` \| (.*?) \| (.*?) \| ", settings, re.MULTILINE)
    return {row[0]: row[column] for row in rows}


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
    listed = table(1)
    port = listed.pop("LIKENESS_PORT")
    fields = {name: field for name, field in Settings.model_fields.items() if name != "port"}
    assert listed == {f"LIKENESS_{n.upper()}": printed(f.default) for n, f in fields.items()}
    assert port == str(Settings.model_fields["port"].default)


def allowed(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Which values a setting takes, in words; empty if any of its kind."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        parts = (allowed(one, definitions) for one in schema["anyOf"])
        return ", ".join(filter(None, parts))
    match schema["type"]:
        case "boolean":
            return "on, off"
        case "integer" | "number":
            return limits(schema)
        case "string" if "pattern" in schema:
            return PATTERNS[schema["pattern"]]
        case "string" if "minLength" in schema:
            assert schema["minLength"] == 1
            return "not empty"
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return ", ".join(f"`{value}`" for value in values)


def limits(schema: dict[str, Any]) -> str:
    """The range of a number."""
    low, high, above = (schema.get(n) for n in ("minimum", "maximum", "exclusiveMinimum"))
    if above is not None and schema["type"] == "integer":
        low, above = above + 1, None
    known = {"type", "default", "title", "description", "minimum", "maximum", "exclusiveMinimum"}
    assert set(schema) <= known, "a bound that this function does not know"
    fractions = "number " if schema["type"] == "number" else ""
    if above is not None:
        most = f", {number(high)} at most" if high is not None else ""
        return f"{fractions}above {above:,}{most}"
    return fractions + number(low) + (f" to {number(high)}" if high is not None else " or more")


def number(value: float) -> str:
    if value >= MIB and value % MIB == 0:
        return f"{int(value) // MIB:,} MiB"
    return f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}"


def test_the_page_says_which_values_are_allowed() -> None:
    schema = Settings.model_json_schema()
    expected = {
        f"LIKENESS_{name.upper()}": allowed(field, schema.get("$defs", {}))
        for name, field in schema["properties"].items()
    }
    assert table(2) == expected


QUANTITY = r"[\d.,]+(?: MiB)?"
# The bounds that the page states, tried on the settings themselves.
STATED = [
    (name, low, high)
    for name, text in table(2).items()
    for low, high in re.findall(rf"^(?:number )?({QUANTITY}) (?:to ({QUANTITY})|or more)", text)
]


@pytest.mark.parametrize(("name", "low", "high"), STATED)
def test_a_bound_is_accepted_and_what_is_beyond_it_refused(
    name: str, low: str, high: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowest = float(low) if "." in low else float(quantity(low))
    within, beyond = [lowest], [lowest * 0.999 if "." in low else lowest - 1]
    if high:
        within.append(float(quantity(high)))
        beyond.append(float(quantity(high)) + 1)
    for value in within:
        monkeypatch.setenv(name, f"{value:g}" if "." in low else f"{value:.0f}")
        assert getattr(Settings(), name.removeprefix("LIKENESS_").lower()) == value
    for value in beyond:
        monkeypatch.setenv(name, f"{value}" if "." in low else f"{value:.0f}")
        with pytest.raises(ValidationError, match=r"greater than|less than"):
            Settings()


def test_every_number_has_an_upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 400 digits does not fit into the numbers of the system: an import ended with it."""
    numbers = {n: str(f.annotation) for n, f in Settings.model_fields.items()}
    names = [n for n, kind in numbers.items() if re.search(r"\bint\b|\bfloat\b", kind)]
    assert len(names) > 25
    for name in names:
        for value in ("9" * 400, f"{10**15 + 1}"):
            monkeypatch.setenv(f"LIKENESS_{name.upper()}", value)
            with pytest.raises(ValidationError, match=r"less than|finite"):
                Settings()
        monkeypatch.delenv(f"LIKENESS_{name.upper()}")


def test_a_root_path_that_cannot_be_one_is_answered_with_the_rule() -> None:
    for path in ("faces", "/faces/", "/a?b", "//"):
        with pytest.raises(ValidationError, match=r"must be /part, or several such parts"):
            Settings(root_path=path)
    assert Settings(root_path="/a/b").root_path == "/a/b"


def test_an_empty_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty path would be the working folder."""
    for name, setting in Settings.model_fields.items():
        monkeypatch.setenv(f"LIKENESS_{name.upper()}", "")
        if setting.default in ("", ()):
            assert getattr(Settings(), name) == setting.default
        else:
            with pytest.raises(ValidationError, match=rf"{name}\n.*must not be empty"):
                Settings()
        monkeypatch.delenv(f"LIKENESS_{name.upper()}")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
def test_a_setting_is_a_finite_number(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinite time would be a wait without a deadline."""
    floats = [n for n, f in Settings.model_fields.items() if f.annotation in (float, float | None)]
    assert len(floats) > 8
    for name in floats:
        monkeypatch.setenv(f"LIKENESS_{name.upper()}", value)
        with pytest.raises(ValidationError, match="finite number"):
            Settings()
        monkeypatch.delenv(f"LIKENESS_{name.upper()}")


def test_a_setting_that_is_on_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = re.search(r"\*On\* is (.*?), and \*off\* is (.*?)[,.;]", PAGE)
    assert stated is not None
    for expected, words in zip((True, False), stated.groups(), strict=True):
        for word in re.findall(r"`(\w+)`", words):
            monkeypatch.setenv("LIKENESS_INSECURE", word)
            assert Settings().insecure is expected


def test_the_readme_states_the_same_defaults() -> None:
    rows = stated("README.md", "## Settings", r"\| (?P<names>`LIKENESS_.*?) \| (?P<values>.*?) \|")
    assert len(rows) > 12
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
