"""Collections, persons and stored faces as resources."""

from typing import Any

import httpx
import pytest

from app.services import Services
from tests.api.test_decisions import code_of


def test_the_default_collection_always_exists(client: httpx.Client) -> None:
    assert client.get("/v1/collections/default").json()["name"] == "default"
    answer = client.delete("/v1/collections/default")
    assert (answer.status_code, code_of(answer)) == (409, "collection_protected")


def test_life_of_a_collection(client: httpx.Client) -> None:
    created = client.post("/v1/collections", json={"name": "staff", "metadata": {"site": 1}})
    assert created.status_code == 201
    assert created.json()["metadata"] == {"site": 1}
    again = client.post("/v1/collections", json={"name": "staff"})
    assert (again.status_code, code_of(again)) == (409, "collection_exists")
    changed = client.patch("/v1/collections/staff", json={"metadata": {"site": 2}})
    assert changed.json()["metadata"] == {"site": 2}
    assert client.delete("/v1/collections/staff").json()["deleted"] == {"persons": 0, "faces": 0}
    gone = client.get("/v1/collections/staff")
    assert (gone.status_code, code_of(gone)) == (404, "collection_not_found")


def test_life_of_a_person(client: httpx.Client, collection: str) -> None:
    persons = f"/v1/collections/{collection}/persons"
    created = client.post(persons, json={"person_id": "ada", "metadata": {"team": "x"}})
    assert created.status_code == 201
    again = client.post(persons, json={"person_id": "ada"})
    assert (again.status_code, code_of(again)) == (409, "person_exists")
    client.patch(f"{persons}/ada", json={"metadata": {}}).raise_for_status()
    assert client.get(f"{persons}/ada").json()["metadata"] == {}
    assert client.get(f"{persons}/bob").status_code == 404
    assert client.delete(f"{persons}/ada").json()["deleted"] == {"persons": 1, "faces": 0}


def test_pages_hold_everyone_once(client: httpx.Client, collection: str) -> None:
    persons = f"/v1/collections/{collection}/persons"
    names = [f"person {i:02d}" for i in range(25)]
    for name in names:
        client.post(persons, json={"person_id": name}).raise_for_status()
    seen, cursor, pages = [], None, 0
    while True:
        page = client.get(persons, params={"limit": 10} | ({"cursor": cursor} if cursor else {}))
        seen += [item["person_id"] for item in page.json()["items"]]
        pages += 1
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    assert (seen, pages) == (names, 3)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "cursor=%25%25", "cursor=_w"])
def test_pages_that_cannot_be(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/v1/collections?{query}")
    assert answer.status_code == 422
    assert code_of(answer) in ("invalid_request", "invalid_cursor")


def test_stored_faces(presidents: Any) -> None:
    base = f"/v1/collections/{presidents.name}"
    faces = presidents.client.get(f"{base}/faces").json()["items"]
    assert sorted(face["person_id"] for face in faces) == ["biden", "obama"]
    of_obama = presidents.client.get(f"{base}/persons/obama/faces").json()["items"]
    one = presidents.client.get(f"{base}/faces/{of_obama[0]['face_id']}").json()
    assert one["person_id"] == "obama"
    assert one["quality"]["face_size_px"] > 70
    assert "embedding" not in one
    missing = presidents.client.get(f"{base}/faces/none")
    assert (missing.status_code, code_of(missing)) == (404, "face_not_found")


@pytest.mark.parametrize("name", ["", "a b", "ä", "-x", "x" * 65])
def test_names_that_cannot_be(client: httpx.Client, name: str) -> None:
    answer = client.post("/v1/collections", json={"name": name})
    assert (answer.status_code, code_of(answer)) == (422, "invalid_request")


def test_another_embedding_space_is_never_mixed(
    client: httpx.Client, services: Services, presidents: Any
) -> None:
    services.gallery.store.collections.create("foreign", "es-other", 192, {})
    photo = {"image": presidents.photo("obama.jpg")}
    for path, fields in (("identify", {}), ("enroll", {"person_id": "x"})):
        answer = client.post(f"/v1/{path}", data={"collection": "foreign", **fields}, files=photo)
        assert (answer.status_code, code_of(answer)) == (409, "embedding_space_mismatch")
    assert client.get("/v1/collections/foreign").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["", "/{c}", "/{c}/persons", "/{c}/faces", "/{c}/calibration", "/{c}/hygiene", "/{c}/imports"],
)
def test_an_unknown_query_parameter_is_refused(
    client: httpx.Client, collection: str, path: str
) -> None:
    answer = client.get(f"/v1/collections{path.format(c=collection)}", params={"page": 2})
    assert (answer.status_code, code_of(answer)) == (422, "unknown_field")
    assert "no query parameter 'page'; it takes" in answer.json()["detail"]


@pytest.fixture
def people(client: httpx.Client, collection: str) -> str:
    """Persons without faces: ada and Ada, ben, and Édouard, whose id is given decomposed."""
    for person_id, team in (("ada", 1), ("Ada", 2), ("ben", 1), ("E\u0301douard", 2)):
        body = {"person_id": person_id, "metadata": {"team": team}}
        client.post(f"/v1/collections/{collection}/persons", json=body).raise_for_status()
    return f"/v1/collections/{collection}/persons"


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [person["person_id"] for person in answer.json()["items"]]


def test_persons_are_found_by_prefix_and_metadata(client: httpx.Client, people: str) -> None:
    assert ids(client.get(people, params={"prefix": "a"})) == ["ada"]
    assert ids(client.get(people, params={"prefix": "E\u0301d"})) == ["\u00c9douard"]
    assert ids(client.get(people, params={"prefix": "x"})) == []
    assert ids(client.get(people, params={"filter": '{"team": 1}'})) == ["ada", "ben"]
    both = {"filter": '{"team": 1}', "prefix": "b", "limit": 1}
    assert ids(client.get(people, params=both)) == ["ben"]
    for wrong in ("[1]", "{", '{"team": NaN}'):
        answer = client.get(people, params={"filter": wrong})
        assert (answer.status_code, code_of(answer)) == (422, "invalid_request")
        detail = answer.json()["detail"]
        assert detail.endswith(".")
        assert not detail.endswith("..")


def test_a_cursor_is_of_one_list(client: httpx.Client, people: str) -> None:
    persons = f"{people}/b/different-from"
    for name in "abcd":
        client.post(people, json={"person_id": name, "metadata": {"team": "night"}})
    for name in "acd":
        client.post(f"{persons}/{name}").raise_for_status()
    collection = people.removesuffix("/persons")
    selected = {"filter": '{"team": "night"}'}
    lists: list[tuple[str, dict[str, str]]] = [
        (people, {}), (people, selected), (people, {"prefix": "b"}),
        ("/v1/collections/default/persons", {}), ("/v1/collections", {}),
        (f"{collection}/faces", {}), (f"{people}/b/faces", {}), (f"{people}/c/faces", {}),
        (persons, {}), (f"{people}/c/different-from", {}), (f"{people}/b/record", {}),
    ]  # fmt: skip
    given = {}
    for place, (url, query) in enumerate(lists):
        page = client.get(url, params={"limit": 1} | query).raise_for_status().json()
        if page["next_cursor"] is not None:
            given[place] = page["next_cursor"]
    assert {0, 1, 8} <= given.keys()
    for place, cursor in given.items():
        for other, (url, query) in enumerate(lists):
            answer = client.get(url, params={"limit": 2, "cursor": cursor} | query)
            if place == other:
                answer.raise_for_status()
            else:
                assert (answer.status_code, code_of(answer)) == (422, "invalid_cursor"), (
                    url,
                    query,
                )


def test_pages_keep_the_prefix(client: httpx.Client, people: str) -> None:
    for number in range(5):
        client.post(people, json={"person_id": f"crew-{number}"}).raise_for_status()
    found, cursor = [], None
    while True:
        page = client.get(people, params={"prefix": "crew-", "limit": 2} | (cursor or {}))
        found += ids(page)
        if page.json()["next_cursor"] is None:
            break
        cursor = {"cursor": page.json()["next_cursor"]}
    assert found == [f"crew-{number}" for number in range(5)]


def test_a_person_is_renamed(presidents: Any) -> None:
    path = f"/v1/collections/{presidents.name}/persons"
    renamed = presidents.client.patch(f"{path}/obama", json={"person_id": "barack"})
    assert renamed.json()["person_id"] == "barack"
    (face,) = presidents.identify(presidents.photo("obama2.jpg")).json()["faces"]
    assert face["person_id"] == "barack"
    assert presidents.client.get(f"{path}/obama").status_code == 404
    taken = presidents.client.patch(f"{path}/barack", json={"person_id": "biden"})
    assert (taken.status_code, code_of(taken)) == (409, "person_exists")
    nothing = presidents.client.patch(f"{path}/barack", json={})
    assert (nothing.status_code, code_of(nothing)) == (422, "invalid_request")
    both = {"person_id": "obama", "metadata": {"office": "president"}}
    assert (
        presidents.client.patch(f"{path}/barack", json=both).json()["metadata"] == both["metadata"]
    )


def test_several_persons_are_deleted_at_once(presidents: Any) -> None:
    path = f"/v1/collections/{presidents.name}/persons/delete"
    answer = presidents.client.post(path, json={"person_ids": ["obama", "ada", "biden", "obama"]})
    assert answer.json()["deleted"] == {"persons": 2, "faces": 2}
    assert answer.json()["not_found"] == ["ada"]
    (face,) = presidents.identify(presidents.photo("obama2.jpg")).json()["faces"]
    assert (face["status"], face["candidates"]) == ("unknown", [])
    for wrong in ([], [""] * 1001):
        refused = presidents.client.post(path, json={"person_ids": wrong})
        assert (refused.status_code, code_of(refused)) == (422, "invalid_request")
