"""Hygiene over HTTP: a finding, and its correction."""

from pathlib import Path

import httpx
import pytest

from app.api.context import ClientLeft, client_watch
from app.api.endpoints.hygiene import _examine
from app.services import Services
from tests.api.test_decisions import code_of


def enroll(client: httpx.Client, collection: str, person: str, photo: Path) -> str:
    answer = client.post(
        "/v1/enroll",
        files={"image": photo.read_bytes()},
        data={"person_id": person, "collection": collection},
    )
    return answer.json()["enrolled"][0]["face_id"]


def test_a_duplicate_is_found_and_merged(
    client: httpx.Client, collection: str, photos: Path
) -> None:
    enroll(client, collection, "obama", photos / "obama.jpg")
    enroll(client, collection, "barack", photos / "obama2.jpg")
    enroll(client, collection, "biden", photos / "biden.jpg")
    url = f"/v1/collections/{collection}"
    found = client.get(f"{url}/hygiene").json()
    (pair,) = found["duplicates"]
    assert {pair["person_id_a"], pair["person_id_b"]} == {"obama", "barack"}
    assert (found["persons"], found["faces"], found["counts"]["duplicates"]) == (3, 3, 1)
    merged = client.post(f"{url}/persons/barack/merge", json={"into": "obama"}).json()
    assert (merged["person_id"], merged["faces"]) == ("obama", 2)
    assert client.get(f"{url}/hygiene").json()["duplicates"] == []
    gone = client.post(f"{url}/persons/barack/merge", json={"into": "obama"})
    assert (gone.status_code, code_of(gone)) == (404, "person_not_found")


def test_a_face_is_moved(client: httpx.Client, collection: str, photos: Path) -> None:
    face = enroll(client, collection, "obama", photos / "biden.jpg")
    url = f"/v1/collections/{collection}"
    moved = client.post(f"{url}/faces/{face}/move", json={"person_id": "biden"}).json()
    assert (moved["face_id"], moved["person_id"]) == (face, "biden")
    bad = client.post(f"{url}/faces/{face}/move", json={"person_id": "a/b"})
    assert bad.status_code == 422


def test_it_ends_when_nobody_waits_for_it(
    client: httpx.Client, services: Services, collection: str, photos: Path
) -> None:
    enroll(client, collection, "obama", photos / "obama.jpg")
    with client_watch() as check:
        pass
    with pytest.raises(ClientLeft):
        _examine(services, collection, 100, check)
    assert client.get(f"/v1/collections/{collection}/hygiene").is_success, "it lets others in"
