"""The photos of a CompreFace: a server that answers as its public API description says."""

import threading
from collections.abc import Iterator
from typing import Annotated

import pytest
import uvicorn
from fastapi import FastAPI, Header, HTTPException, Response

from app.importing.source_rows import ImportSourceError
from app.importing.sources import SourceOptions, rows_of, total_of
from tests.waiting import PATIENCE_S, until

KEY = "00000000-0000-0000-0000-000000000002"
IMAGES = {f"image-{n}": (f"subject {n % 3}", b"photo %d" % n) for n in range(1_203)}


def compreface() -> FastAPI:
    api = FastAPI()

    def check(key: str) -> None:
        if key != KEY:
            raise HTTPException(401)

    @api.get("/api/v1/recognition/faces")
    def faces(x_api_key: Annotated[str, Header()], page: int = 0, size: int = 20) -> object:
        check(x_api_key)
        listed = [{"image_id": name, "subject": of} for name, (of, _) in IMAGES.items()]
        return {
            "faces": listed[page * size : (page + 1) * size],
            "page_number": page,
            "page_size": size,
            "total_pages": -(-len(listed) // size),
            "total_elements": len(listed),
        }

    @api.get("/api/v1/recognition/faces/{image_id}/img")
    def image(image_id: str, x_api_key: Annotated[str, Header()]) -> Response:
        check(x_api_key)
        kept = image_id != "image-7"  # as one that was configured not to keep images
        return Response(IMAGES[image_id][1] if kept else b"", media_type="image/jpeg")

    return api


@pytest.fixture(scope="module")
def source() -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(compreface(), port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield f"compreface:http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=PATIENCE_S)


def options(key: str | None = KEY, max_bytes: int = 1_000) -> SourceOptions:
    return SourceOptions("es-here", max_bytes, key=key)


def test_all_pages_and_each_photo(source: str) -> None:
    assert total_of([source], options()) == len(IMAGES)
    count = 0
    for row, (subject, photo) in zip(rows_of([source], options()), IMAGES.values(), strict=True):
        count += 1
        assert row.person_id == subject
        if count in (1, 700, 1_203):  # read as an import does, while the source is open
            assert row.read() == photo
        if count == 8:
            with pytest.raises(ImportSourceError, match="configured not to keep images"):
                row.read()
    assert count == len(IMAGES)


def test_a_photo_that_is_too_large_is_read_just_so_far(source: str) -> None:
    rows = rows_of([source], options(max_bytes=3))
    assert next(rows).read() == b"phot"


@pytest.mark.parametrize(
    ("address", "key", "message"),
    [
        (None, "wrong", "refuses the key"),
        (None, None, "--source-key"),
        ("compreface:localhost:8000", KEY, "Name its address"),
        ("compreface:http://127.0.0.1:9", KEY, "does not answer as CompreFace"),
    ],
)
def test_what_cannot_be_read(source: str, address: str | None, key: str, message: str) -> None:
    with pytest.raises(ImportSourceError, match=message):
        next(rows_of([address or source], options(key)))
