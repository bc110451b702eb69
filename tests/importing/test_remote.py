"""Rows into a running server: what is enrolled there, sent again, and refused."""

import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from app.api.main import create_app
from app.decision.policy import FaceSelection
from app.importing import remote as module
from app.importing.outcomes import Outcome, Result
from app.importing.remote import RemoteImport
from app.importing.rows import ImportSourceError, Row
from app.services import Services, build_services
from app.settings import Settings


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    return build_services(Settings(data_dir=tmp_path_factory.mktemp("server")))


@pytest.fixture(scope="module")
def url(services: Services) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(services), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=20)


def run(url: str, rows: list[Row], collection: str) -> list[Outcome]:
    told: list[Outcome] = []
    remote = RemoteImport(url, "key", collection, FaceSelection.LARGEST)
    remote.ensure_collection()
    remote.run(iter(rows), told.append)
    return told


def test_the_same_outcomes_as_here(url: str, services: Services, photos: Path) -> None:
    vector = np.ones(services.pack.recogniser.dimension, np.float32)
    rows = [
        Row("1", "obama", (photos / "obama.jpg").read_bytes, metadata={"office": "president"}),
        Row("2", "obama", partial(bytes, b"\xff\xd8\xff broken")),
        Row("3", "ones", embedding=vector),
        Row("4", "x", problem=ImportSourceError("The row is empty.")),
        Row("5", "x", Path("/absent.jpg").read_bytes),
    ]
    collection = f"c-{uuid.uuid4().hex[:8]}"
    told = run(url, rows, collection)
    assert [(one.place, one.result) for one in told] == [
        ("1", Result.ENROLLED),
        ("2", Result.REJECTED),
        ("3", Result.ENROLLED),
        ("4", Result.REJECTED),
        ("5", Result.REJECTED),
    ]
    assert services.gallery.store.person(collection, "obama").metadata == {"office": "president"}
    assert services.gallery.store.count(services.gallery.require(collection)).templates == 2
    again = run(url, rows[:1], collection)
    assert again[0].result in (Result.SKIPPED, Result.ENROLLED)  # answered as it was before
    assert services.gallery.store.count(services.gallery.require(collection)).templates == 2


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportSourceError, match="does not answer as a Likeness server"):
        RemoteImport("http://127.0.0.1:9", None, "default", FaceSelection.ONLY).ensure_collection()
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    remote = RemoteImport("http://127.0.0.1:9", None, "default", FaceSelection.ONLY)
    with pytest.raises(ImportSourceError, match=r"in 8 attempts.*Run the import again"):
        remote.run(iter([Row("1", "a", partial(bytes, b"x"))]), lambda _outcome: None)
