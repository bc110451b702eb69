"""The README's tour: its commands are run, and what it prints is compared with what comes."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from app.access.keys import NewKey, Scope
from app.services import build_services
from app.settings import Settings
from app.store.identifiers import DEFAULT_COLLECTION
from tests.api.conftest import run_server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LENGTH = 200  # lines, at most

pytestmark = pytest.mark.slow


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def json_values(text: str) -> list[Any]:
    """JSON values that follow one another."""
    decoder, values = json.JSONDecoder(), []
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


def take_the_tour(url: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run its commands; curl reads the options in `home`/.curlrc."""
    (commands,) = [block for block in blocks("") if "$API/enroll" in block]
    script = commands.replace("http://localhost:8000", url)
    return subprocess.run(
        ["bash", "-euc", script],
        cwd=ROOT, env={**os.environ, "CURL_HOME": str(home)},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("keyed", [False, True])
def test_the_tour_answers_what_it_says(tmp_path: Path, keyed: bool) -> None:
    services = build_services(Settings(data_dir=tmp_path / "data"))
    key = NewKey("tour", [Scope.IDENTIFY, Scope.ENROLL], [DEFAULT_COLLECTION])
    token = services.access_keys.create(key)[1] if keyed else ""
    services.access.refresh()  # do not wait until its thread reads the keys
    with run_server(services) as url:
        if keyed:
            refused = json_values(take_the_tour(url, tmp_path).stdout)
            assert {answer["code"] for answer in refused} == {"unauthenticated"}
            (tmp_path / ".curlrc").write_text(f'header = "Authorization: Bearer {token}"\n')
        done = take_the_tour(url, tmp_path)
    (printed,) = blocks("json")
    shown, answered = json_values(printed), json_values(done.stdout)
    assert len(shown) == len(answered) == 5
    for some, whole in zip(shown, answered, strict=True):
        assert_part(some, whole)


def assert_part(some: Any, whole: Any) -> None:
    """Every member that is shown is in the answer; numbers to the digits that are shown."""
    if isinstance(some, dict):
        for name, value in some.items():
            assert name in whole
            assert_part(value, whole[name])
    elif isinstance(some, list):
        assert len(some) == len(whole)
        for one, other in zip(some, whole, strict=True):
            assert_part(one, other)
    elif isinstance(some, float):
        assert whole == pytest.approx(some, abs=6e-4, rel=1e-2 if abs(some) < 1e-3 else 0)
    else:
        assert some == whole


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= LENGTH
