"""The pages that list what the code has: error codes, policies, metrics, audit actions, files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
from pydantic import BaseModel

from app import errors
from app.access.refused import CallOutcome
from app.api.problems import problem_codes
from app.decision import gates, pairs, verdicts
from app.decision.gates import MILD_GATE, OPEN_GATE, QualityGate
from app.decision.policy import CollectionPolicy
from app.errors import LikenessError
from app.importing import checks, local, outcomes
from app.importing.source_rows import ImportSourceError, NotAPhoto, UnreadableFile
from app.services import Services
from tests.api.conftest import Gallery

ROOT = Path(__file__).parents[2]
# Bases of other codes, one that only a command has, and one that is logged.
NOT_ANSWERED = {
    "conflict", "not_found", "unusable_face", "not_reembedded", "calibration_mismatch",
}  # fmt: skip


def section(page: str, heading: str) -> str:
    """The text below a heading of a page, to the next heading."""
    text = "\n" + (ROOT / "docs" / page).read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"{page} has no {heading}"
    return rest.partition("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the rows of tables whose first cell is code, by that."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            assert cells[0] not in found, f"{cells[0]} is there twice"
            found[cells[0].strip("`")] = cells[1:]
    return found


def test_every_error_code_is_explained_with_its_status() -> None:
    statuses = {
        one.code: str(one.status)
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, LikenessError)
    }
    listed = rows(section("errors.md", "## Codes"))
    codes = set(problem_codes()) - NOT_ANSWERED
    assert {code: cells[0] for code, cells in listed.items()} == {
        code: statuses[code] for code in codes
    }


def test_every_reason_is_explained() -> None:
    gate = {limit.code: f"`{limit.name}`" for limit in (gates._NOT_LIVE, *gates._LIMITS)}
    listed = rows(section("errors.md", "## Reasons of a gate"))
    assert {code: cells[0] for code, cells in listed.items()} == gate
    decided = {verdicts.OUTSIDE_CALIBRATION, verdicts.IN_OTHER_FACE}
    decided |= {pairs.MARGIN_TOO_SMALL, pairs.NEARER_TO_OTHER}
    assert set(rows(section("errors.md", "## Reasons of a decision"))) == decided
    imports = {checks.CONFLICT, local.DECLARED, outcomes.NOT_LISTED}
    imports |= {"already_enrolled", "near_duplicate"}
    imports |= {one.code for one in (ImportSourceError, NotAPhoto, UnreadableFile)}
    assert set(rows(section("errors.md", "## Reasons in an import"))) == imports


def test_every_member_of_a_policy_is_listed() -> None:
    listed = rows(section("policy.md", "# Policies of collections"))
    assert list(listed) == list(CollectionPolicy.model_fields)
    for name, field in CollectionPolicy.model_fields.items():
        assert field.default == said(listed[name][0]), name
        assert bounds(CollectionPolicy, name) == said_bounds(listed[name][1]), name


def test_every_limit_of_a_gate_is_listed() -> None:
    listed = rows(section("policy.md", "## Gates"))
    assert list(listed) == list(QualityGate.model_fields)
    for name, (allowed, mild) in listed.items():
        assert getattr(MILD_GATE, name) == (None if mild == "–" else float(mild)), name
        assert bounds(QualityGate, name) == said_bounds(allowed), name


def said(cell: str) -> object:
    """The default that a cell of the table states."""
    words = {
        "null": None,
        "false": False,
        "no limits": OPEN_GATE,
        "the [mild gate](#gates)": MILD_GATE,
    }
    if cell in words:
        return words[cell]
    return cell.strip("`") if cell.startswith("`") else float(cell)


def bounds(model: type[BaseModel], name: str) -> list[float]:
    """The bounds of a field, sorted; of an alternative with None, those of the other one."""
    schema = str(model.model_json_schema()["properties"][name])
    named = re.findall(r"'(?:exclusiveM|m)(?:ini|axi)mum': (-?[\d.]+)", schema)
    return sorted(float(value) for value in named)


def said_bounds(cell: str) -> list[float]:
    text = cell.partition(";")[0].replace("−", "-").replace(",", "")
    return sorted(float(value) for value in re.findall(r"-?\d[\d.]*", text))


def test_every_metric_is_listed_with_its_kind(
    client: httpx.Client, services: Services, presidents: Gallery
) -> None:
    services.metrics.observe_problem("no_face")  # a label makes the family visible
    served = dict(re.findall(r"(?m)^# TYPE (likeness_\w+) (\w+)$", client.get("/metrics").text))
    served = {name: kind for name, kind in served.items() if not name.endswith("_created")}
    listed = rows(section("metrics.md", "# Metrics"))
    assert {name: cells[0] for name, cells in listed.items()} == served


def test_every_stage_of_a_photo_is_listed() -> None:
    source = (ROOT / "app" / "faces" / "pipeline.py").read_text(encoding="utf-8")
    stages = {"queue", *re.findall(r'clock\.stage\("(\w+)"\)', source)}
    (text,) = rows(section("metrics.md", "# Metrics"))["likeness_stage_seconds"][1:]
    assert set(re.findall(r"`(\w+)`", text)) - {"stage"} == stages


def test_every_action_of_the_audit_log_is_listed() -> None:
    cells = re.findall(r"(?m)^\| (`.*?) \|", section("audit.md", "## Actions"))
    listed = re.findall(r"`([\w.]+)`", " ".join(cells))
    assert sorted(listed) == sorted(set(actions()))


def actions() -> Iterator[str]:
    """The actions that the code writes: texts of this form that calls of functions which write
    entries have, or constants that they are named by."""
    for path in (ROOT / "app").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "lab" in path.parts or not re.search(r"audit|note", source):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                families = (
                    r"alternate_embeddings|backup|calibration|collection|consent|crops|database"
                )
                families += r"|encryption|face|import|key|log|metadata|pair|person"
                if re.fullmatch(rf"(?:{families})\.[a-z_]+", node.value):
                    yield node.value
    yield from (f"call.{outcome}" for outcome in CallOutcome)


def test_every_file_of_the_data_folder_is_listed(
    client: httpx.Client, services: Services, presidents: Gallery
) -> None:
    """What a service leaves there, at least."""
    presidents.client.post(
        f"/v1/collections/{presidents.name}/imports",
        content=b'{"person_id": "ada"}\n', headers={"Content-Type": "application/x-ndjson"},
    ).raise_for_status()  # fmt: skip
    listed = "\n".join(rows(section("data-folder.md", "# The data folder")))
    names = sorted(path.name for path in services.settings.data_dir.iterdir())
    assert "imports" in names
    assert "likeness.db" in names
    assert [name for name in names if name not in re.split(r"[`, /\n]+", listed)] == []
