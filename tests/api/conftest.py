"""A real service for the tests: uvicorn on a free port of this machine, asked with httpx."""

import io
import queue
import re
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from app.access.keys import NewKey, Scope
from app.api.main import create_app
from app.api.server import Server
from app.inference.fair_pool import RequestShare
from app.services import Services, build_services
from app.settings import CpuEngine, Settings
from app.types import CooperativeTask

START_S = 60
OWN, FOREIGN = "own", "foreign"  # collections of the service with access keys


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("service"),
        max_images=8,
        cpu_engine=CpuEngine.ONNXRUNTIME,  # also where OpenVINO is installed and faster
    )
    return build_services(settings)


@contextmanager
def run_server(services: Services) -> Iterator[str]:
    """The address of a service on a free port, when it is ready."""
    settings = services.settings.model_copy(update={"port": 0})
    ports: queue.Queue[int] = queue.Queue()
    server = Server(create_app(services), settings, ports.put)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        certificate = settings.tls_cert
        trusted = True if certificate is None else ssl.create_default_context(cafile=certificate)
        url = f"http{'s' * bool(certificate)}://127.0.0.1:{ports.get(timeout=START_S)}"
        deadline = time.monotonic() + START_S
        with httpx.Client(base_url=url, verify=trusted, timeout=START_S) as client:
            while (answer := client.get("/readyz")).status_code != httpx.codes.OK:
                assert time.monotonic() < deadline, answer.text
                time.sleep(0.02)
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=START_S)


@contextmanager
def waits_for(may_go_on: threading.Event, services: Services) -> Iterator[None]:
    """One worker takes no photo before the event is set, which it is at the end: what waits for it
    then waits on a machine of any speed."""

    def wait() -> CooperativeTask[None]:
        may_go_on.wait(2 * START_S)
        return
        yield

    services.scheduler._photos.submit(wait(), RequestShare())
    try:
        yield
    finally:
        may_go_on.set()


@pytest.fixture(scope="session")
def base_url(services: Services) -> Iterator[str]:
    with run_server(services) as url:
        yield url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[httpx.Client]:
    """A client that fails where a problem is answered that the OpenAPI document does not list."""
    declared = DeclaredProblems(httpx.get(f"{base_url}/openapi.json").json())
    hooks = {"response": [declared.check]}
    with httpx.Client(base_url=base_url, timeout=60, event_hooks=hooks) as client:
        yield client


class DeclaredProblems:
    """The codes that an OpenAPI document lists for each call."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._codes: list[tuple[str, re.Pattern[str], set[tuple[int, str]]]] = []
        for path, methods in document["paths"].items():
            pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", path))
            for method, operation in methods.items():
                codes = {
                    (int(status), code)
                    for status, response in operation["responses"].items()
                    for code in response.get("x-problem-codes", [])
                }
                self._codes.append((method.upper(), pattern, codes))

    def check(self, response: httpx.Response) -> None:
        if "problem" not in response.headers.get("content-type", ""):
            return
        if not response.read():
            return  # of HEAD
        answered = (response.status_code, response.json()["code"])
        for method, pattern, codes in self._codes:
            request = response.request
            if method == request.method and pattern.fullmatch(request.url.path):
                assert answered in codes, f"{method} {request.url.path} does not list {answered}"


@pytest.fixture(scope="session")
def photos(small_photos: Path) -> Path:
    """Small ones: what matters here is what a call answers."""
    return small_photos


@pytest.fixture
def collection(client: httpx.Client) -> str:
    """A fresh collection, so that tests do not see one another's people."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    client.post("/v1/collections", json={"name": name}).raise_for_status()
    return name


class Gallery:
    """One collection as a client sees it."""

    def __init__(self, client: httpx.Client, name: str, photos: Path) -> None:
        self.client = client
        self.name = name
        self._photos = photos

    def photo(self, name: str) -> bytes:
        return (self._photos / name).read_bytes()

    def enroll(self, person_id: str, *photos: bytes, **fields: str) -> httpx.Response:
        return self.client.post(
            "/v1/enroll",
            data={"person_id": person_id, "collection": self.name, **fields},
            files=[("image", photo) for photo in photos],
        )

    def identify(self, photo: bytes, **fields: str) -> httpx.Response:
        return self.client.post(
            "/v1/identify",
            data={"collection": self.name, **fields},
            files={"image": photo},
        )

    def verify(self, photo: bytes, **fields: str) -> httpx.Response:
        return self.client.post(
            "/v1/verify",
            data={"collection": self.name, **fields},
            files={"image": photo},
        )


@pytest.fixture
def gallery(client: httpx.Client, collection: str, photos: Path) -> Gallery:
    return Gallery(client, collection, photos)


@pytest.fixture
def presidents(gallery: Gallery) -> Gallery:
    """A gallery that knows two people."""
    gallery.enroll("obama", gallery.photo("obama.jpg")).raise_for_status()
    gallery.enroll("biden", gallery.photo("biden.jpg")).raise_for_status()
    return gallery


@pytest.fixture(scope="session")
def blank_photo() -> bytes:
    """A readable photo that shows nobody."""
    buffer = io.BytesIO()
    Image.new("RGB", (320, 240), (90, 120, 150)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Services:
    settings = Settings(data_dir=tmp_path_factory.mktemp("keyed"), probing_misses=3)
    services = build_services(settings)
    for name in (OWN, FOREIGN):
        services.gallery.create_collection(name, {})
    return services


@pytest.fixture(scope="session")
def tokens(keyed: Services) -> dict[str, str]:
    """A token of each kind, by name."""
    create = keyed.access_keys.create
    made = {scope.value: create(NewKey(scope, [scope]))[1] for scope in Scope}
    made["all"] = create(NewKey("all", [*Scope]))[1]
    made["limited"] = create(NewKey("limited", [*Scope], [OWN]))[1]
    made["expired"] = create(NewKey("x", [*Scope], None, datetime.now(UTC) - timedelta(1)))[1]
    made["revoked"] = create(NewKey("revoked", [*Scope]))[1]
    keyed.access_keys.revoke("revoked")
    made["changed"] = made["all"][:-2] + ("AA" if made["all"][-2:] != "AA" else "BB")
    keyed.access.refresh()
    return made


@pytest.fixture(scope="session")
def site(keyed: Services, tokens: dict[str, str]) -> Iterator[httpx.Client]:
    with run_server(keyed) as url, httpx.Client(base_url=url, timeout=60) as client:
        declared = DeclaredProblems(client.get("/openapi.json").json())
        client.event_hooks = {"response": [declared.check]}
        yield client
