"""Documents hold together: every link leads somewhere, every decision is in one form and listed.
Sources say nothing of the machine that they were written on."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("*.md", "docs/**/*.md", "models/*.md", "benchmarks/*.md", "tests/*/README.md")
DOCUMENTS = sorted(path for folder in FOLDERS for path in ROOT.glob(folder))
SOURCES = sorted(ROOT.glob("app/**/*.py"))
DECISIONS = sorted(ROOT.glob("docs/adr/[0-9]*.md"))


def links(document: Path) -> Iterator[str]:
    text = re.sub(r"(?ms)^```.*?^```", "", document.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"(?m)^#+ (.*)$", document.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_of_it(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_project_that_is_named_exists(document: Path) -> None:
    if document.name == "CHANGELOG.md":  # what it names was there at the time
        pytest.skip("names files of earlier versions")
    text = document.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/.])(?:app|tests|benchmarks|scripts)/[\w/]+\.py\b", text):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_every_decision_has_a_status_and_the_same_parts(decision: Path) -> None:
    lines = decision.read_text(encoding="utf-8").splitlines()
    assert re.match(rf"# {int(decision.name[:4])}\. \S", lines[0])
    assert re.match(r"\*\*Status\.\*\* (Accepted|Replaced|Rejected)\b.*\.", lines[2])
    parts = [line.split("**")[1] for line in lines if re.match(r"\*\*[A-Z][a-z]+\.\*\*", line)]
    needed = ["Status.", "Context.", "Decision.", "Consequences."]
    # One page may have two decisions that were made together.
    found = [part for part in parts if part in needed]
    assert found in (needed, needed + needed[1:])


def test_the_layers_are_those_that_the_checks_enforce() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one.get("containers") == ["app"])
    enforced = [re.findall(r"\w+", layer) for layer in layers]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (written,) = re.findall(r"(?m)^`cli` → [^.]*?\n\n", text)
    assert [re.findall(r"`(\w+)`", layer) for layer in written.split("→")] == enforced


def test_rules_for_imports_name_every_module_that_they_are_for() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {one["name"]: one for one in settings["tool"]["importlinter"]["contracts"]}
    modules = {
        f"app.{path.stem}"
        for path in (ROOT / "app").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    for rule, exempt in (
        ("Domain code does not know the web framework", {"app.api", "app.cli"}),
        ("Only the laboratory imports its libraries", {"app.lab"}),
    ):
        assert set(contracts[rule]["source_modules"]) == modules - exempt


def test_every_folder_of_tests_is_in_the_table_of_tests() -> None:
    text = (ROOT / "docs" / "how-to-change.md").read_text(encoding="utf-8")
    table = text.partition("## Which test covers what")[2]
    folders = {f"tests/{path.parent.name}" for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= set(re.findall(r"`(tests/\w+)`", table))


def test_every_module_that_the_design_names_exists() -> None:
    """The design's tree of `app/`, and the owners of threads."""
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = design.partition("```")[2].partition("```")[0]
    packages = re.findall(r"(?m)^  (\w+)/ ", tree)
    assert {path.name for path in (ROOT / "app").iterdir() if (path / "__init__.py").exists()} == {
        *packages
    }
    modules = {path.stem for path in SOURCES}
    assert set(re.findall(r"\b[a-z]+_[a-z_]+\b", tree)) <= modules
    paths = re.findall(r"`((?:\w+/)+\w*(?:\.py)?)`", design)
    threads = (ROOT / "docs" / "concurrency.md").read_text(encoding="utf-8")
    paths += re.findall(r"`((?:\w+/)+\w+\.py)`", threads)
    for path in paths:
        named = path.removeprefix("app/")
        assert (ROOT / "app" / named).exists() or (ROOT / path).exists(), path


def test_every_benchmark_is_in_the_map_of_benchmarks() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    programs = {
        path.name for path in (ROOT / "benchmarks").iterdir() if path.suffix in (".py", ".sh")
    }
    assert programs <= set(re.findall(r"`(\w+\.(?:py|sh))`", text))


def test_every_decision_is_listed_with_its_title_and_the_later_ones_that_its_status_names() -> None:
    listed = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    for decision in DECISIONS:
        text = decision.read_text(encoding="utf-8")
        title = text.splitlines()[0].partition(". ")[2]
        status = text.partition("**Status.**")[2].partition("**Context.**")[0]
        named = {int(number) for number in re.findall(r"\[ADR (\d+)\]", status)}
        later = ", ".join(str(one) for one in sorted(named) if one > int(decision.name[:4]))
        note = f" (later: ADR {later})" if later else ""
        assert f"- [{decision.name[:4]}]({decision.name}) {title}{note}\n" in listed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_decision_is_named_by_its_number_in_one_form(document: Path) -> None:
    if document.name == "README.md" and document.parent.name == "adr":
        pytest.skip("the list itself")
    text = document.read_text(encoding="utf-8")
    for name, number in re.findall(r"\[([^]]*)\]\((?:[./\w]*/)?(\d{4})-[\w-]+\.md", text):
        words = " ".join(name.split())
        assert words == f"ADR {int(number)}" or not re.search(r"\d{2}|^\d+$|adr/", words), words


def test_no_source_has_a_path_of_the_machine_that_it_was_written_on() -> None:
    """What a shell printed while modules were moved became the docstring of four of them."""
    assert len(SOURCES) > 200
    for source in SOURCES:
        assert not re.search(r"/(root|home|work)/", source.read_text(encoding="utf-8")), source
