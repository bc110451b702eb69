"""The scripts of `/docs` and `/redoc`, which anybody may request."""

from pathlib import Path

import fastapi_offline
import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import FileResponse

from app.api import openapi
from app.api.openapi import NAME, serve_from_memory
from app.api.turns import PIECE

SCRIPTS = f"/{NAME}/swagger-ui-bundle.js", f"/{NAME}/redoc.standalone.js"


@pytest.mark.parametrize("path", SCRIPTS)
def test_a_script_is_whole(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    file = Path(fastapi_offline.__file__).parent / "static" / path.rpartition("/")[2]
    assert answer.content == file.read_bytes()
    assert len(answer.content) > 2 * PIECE
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["content-length"] == str(len(answer.content))
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_a_browser_that_has_it_gets_no_copy(client: httpx.Client) -> None:
    tag = client.get(SCRIPTS[0]).headers["etag"]
    again = client.get(SCRIPTS[0], headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


def test_no_request_opens_a_file(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing would keep it open."""

    def opened(*_: object) -> None:
        raise AssertionError("a file is opened")

    assert client.get(SCRIPTS[0]).status_code == 200
    monkeypatch.setattr(FileResponse, "__call__", opened)
    monkeypatch.setattr(openapi.Path, "read_bytes", opened)
    assert client.get(SCRIPTS[0], headers={"range": "bytes=0-1,2-3"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["", "absent.js", "../core.py", "%2e%2e/core.py", "a%00b", "a" * 300]
)
def test_nothing_else_is_there(client: httpx.Client, path: str) -> None:
    assert client.get(f"/{NAME}/{path}").status_code == 404


def test_another_version_of_fastapi_offline_is_noticed() -> None:
    with pytest.raises(LookupError, match=NAME):
        serve_from_memory(FastAPI())
