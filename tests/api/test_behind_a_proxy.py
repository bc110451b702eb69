"""A service that a proxy publishes below a path, and pages of other origins that call it."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from app.services import build_services
from app.settings import Settings
from tests.api.conftest import run_server
from tests.api.test_decisions import code_of

ORIGIN = "https://kiosk.example"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("service"),
        root_path="/faces",
        cors_origins=(ORIGIN,),
    )
    with (
        run_server(build_services(settings)) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def test_the_docs_page_names_what_the_browser_can_reach(client: httpx.Client) -> None:
    page = client.get("/docs").text  # the proxy took /faces out
    (document,) = re.findall(r"url: '([^']+)'", page)
    assert document == "/faces/openapi.json"
    assert client.get("/openapi.json").json()["servers"] == [{"url": "/faces"}]
    assert client.get("/").headers["location"] == "/faces/docs"


@pytest.mark.parametrize("prefix", ["", "/faces"], ids=["stripped", "kept"])
def test_calls_arrive_with_the_path_or_without(client: httpx.Client, prefix: str) -> None:
    assert client.get(f"{prefix}/v1/collections").status_code == 200
    assert code_of(client.get(f"{prefix}/v1/nothing")) == "route_not_found"
    assert client.get(f"{prefix}/livez").status_code == 200


def test_pages_of_a_listed_origin_may_call(client: httpx.Client) -> None:
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/identify", headers=asked).status_code == 200
    answer = client.get("/v1/collections", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    refused = client.get("/v1/collections/absent", headers={"Origin": ORIGIN})
    assert refused.headers["access-control-allow-origin"] == ORIGIN
    other = client.get("/v1/collections", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in other.headers


def test_origins_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIKENESS_CORS_ORIGINS", f"{ORIGIN}, https://gate.example")
    assert Settings().cors_origins == (ORIGIN, "https://gate.example")


@pytest.mark.parametrize("origin", ["*", "null", "http://[::1]:8000", "capacitor://localhost"])
def test_what_is_an_origin(origin: str) -> None:
    assert Settings(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize(
    "text",
    ["javascript:x", "kiosk.example", f"{ORIGIN}/", f"{ORIGIN}/app", "https://",
     "https://*.kiosk.example", "https://kiosk.example:*", "https://Kiosk.example",
     "https://kiosk.example:443", "http://kiosk.example:80", "https://ada@kiosk.example"],
)  # fmt: skip
def test_what_is_no_origin(text: str) -> None:
    """Some of them look like one, but no browser sends them."""
    with pytest.raises(ValidationError, match=r"must be an origin as .* https://kiosk\.example"):
        Settings(cors_origins=(ORIGIN, text))
