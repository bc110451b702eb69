"""The photos of a running CompreFace, by its public REST API (list and download saved examples)."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx

from app.importing.source_rows import ImportSourceError, Row
from app.importing.sources import PREFIX

FACES = "/api/v1/recognition/faces"
FACES_A_PAGE = 500
TIMEOUT_S = 60.0
RETRIES = 3


def compreface_rows(source: str, api_key: str | None, max_bytes: int) -> Iterator[Row]:
    """All saved examples of the recognition service whose key it is; `source` is
    compreface:http://host:8000. Subjects become persons. Raises ImportSourceError."""
    with _client(source, api_key) as client:
        page, pages = 0, 1
        while page < pages:
            listed = _page(client, page, FACES_A_PAGE)
            pages = int(listed["total_pages"])
            page += 1
            for face in listed["faces"]:
                place = f"{client.base_url.host}/{face['image_id']}"
                read = partial(_download, client, face["image_id"], max_bytes)
                yield Row(place, str(face["subject"]), read)


def count_compreface(source: str, api_key: str | None) -> int:
    """How many examples are saved."""
    with _client(source, api_key) as client:
        return int(_page(client, 0, 1)["total_elements"])


def _client(source: str, api_key: str | None) -> httpx.Client:
    url = source.removeprefix(PREFIX)
    if not api_key:
        raise ImportSourceError(
            "CompreFace needs the key of its recognition service: --source-key, or "
            "LIKENESS_SOURCE_KEY in the environment."
        )
    if not url.startswith(("http://", "https://")):
        raise ImportSourceError(f"Name its address, as {PREFIX}http://localhost:8000, not {url}.")
    transport = httpx.HTTPTransport(retries=RETRIES)
    headers = {"x-api-key": api_key}
    return httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, transport=transport)


def _page(client: httpx.Client, page: int, size: int) -> dict[str, Any]:
    try:
        answer = client.get(FACES, params={"page": page, "size": size})
        if answer.status_code in (401, 403):
            raise ImportSourceError(f"{client.base_url} refuses the key.")
        listed: dict[str, Any] = answer.raise_for_status().json()
        assert {"faces", "total_pages", "total_elements"} <= set(listed)
    except (httpx.HTTPError, ValueError, TypeError, AssertionError) as error:
        raise ImportSourceError(
            f"{client.base_url} does not answer as CompreFace 0.6 or later: {error}."
        ) from error
    return listed


def _download(client: httpx.Client, image_id: str, max_bytes: int) -> bytes:
    """A photo, or just enough of it to be refused as too large. Raises ImportSourceError."""
    data = b""
    try:
        with client.stream("GET", f"{FACES}/{image_id}/img") as answer:
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > max_bytes:
                    return data[: max_bytes + 1]
    except httpx.HTTPError as error:
        raise ImportSourceError(f"CompreFace did not give the image: {error}.") from error
    if not data:
        raise ImportSourceError(
            "CompreFace has no image of it: it was configured not to keep images."
        )
    return data
