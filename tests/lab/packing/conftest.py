"""A model zoo on this machine, with real networks in its archives."""

import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import pytest

from app.inference.packs import digest
from app.lab.packing.published import PUBLISHED, PublishedPack
from tests.waiting import LOOK_EVERY_S


@dataclass
class Zoo:
    """Serves the files of a folder, ranges too. `break_after` bytes the next answer ends early;
    `asked` are the ranges that were asked for. `answer` writes every answer instead, if it is set.
    """

    folder: Path
    url: str = ""
    break_after: int | None = None
    answer: Callable[[BinaryIO], None] | None = None
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def zoo(tmp_path: Path) -> Iterator[Zoo]:
    zoo = Zoo(tmp_path / "zoo")
    zoo.folder.mkdir()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if zoo.answer is not None:
                with suppress(ConnectionError):
                    zoo.answer(self.wfile)
                return
            file = zoo.folder / self.path.lstrip("/")
            if not file.is_file():
                self.send_error(404)
                return
            asked = self.headers.get("Range", "")
            zoo.asked.append(asked)
            content = file.read_bytes()
            start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            limit, zoo.break_after = zoo.break_after, None
            self.wfile.write(content[start:][:limit])

        def log_message(self, *_arguments: object) -> None:
            """Silence."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[LOOK_EVERY_S])
    thread.start()
    zoo.url = f"http://127.0.0.1:{server.server_port}"
    yield zoo
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def people(evaluation_faces: Path, tmp_path: Path) -> Path:
    """As few photos of people as prove a recogniser."""
    folder = tmp_path / "people"
    folder.mkdir()
    for person in sorted(evaluation_faces.iterdir())[:24]:
        photo = next(person.iterdir())
        shutil.copy(photo, folder / photo.name)
    return folder


@pytest.fixture
def networks(eval_models: Path) -> Path:
    return eval_models / "insightface"


@pytest.fixture
def published(networks: Path) -> PublishedPack:
    """buffalo_sc, with the digest of the recogniser that is at hand: it was rebuilt from another
    copy, and is not the published file byte by byte."""
    pack = PUBLISHED["buffalo_sc"]
    recogniser = replace(pack.recogniser, sha256=digest(networks / pack.recogniser.file))
    return replace(pack, recogniser=recogniser)


@pytest.fixture
def archive(zoo: Zoo, networks: Path, published: PublishedPack) -> Path:
    path = zoo.folder / published.archive
    with zipfile.ZipFile(path, "w") as content:
        for file in (published.detector.file, published.recogniser.file):
            content.write(networks / file, file)
    return path
