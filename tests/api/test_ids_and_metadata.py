"""Ids and metadata over HTTP: what is refused, in which words, and what earlier versions stored."""

import json
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from app.services import Services

COMPOSED, DECOMPOSED = "jos\u00e9", "jose\u0301"
PERSIAN = "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627"


def deep(depth: int) -> str:
    """JSON of objects within one another."""
    return '{"a": ' * (depth - 1) + "{}" + "}" * (depth - 1)


def refusal(answer: httpx.Response) -> str:
    """The detail of a refusal."""
    assert answer.status_code == 422, answer.text
    assert answer.json()["code"] == "invalid_request"
    return str(answer.json()["detail"])


RULE = "must have 1 to 64 of the characters A-Z a-z 0-9 . _ - and begin with a letter or a digit"


def test_a_name_that_a_collection_cannot_have_is_answered_with_the_rule(
    client: httpx.Client, gallery: Any
) -> None:
    refused = f"{RULE}; 'B\\xfcro 2' does not"
    named = {"name": "B\u00fcro 2"}
    assert refusal(client.post("/v1/collections", json=named)) == f"name: {refused}."
    found = client.get("/v1/collections/B\u00fcro 2/persons")
    assert refusal(found) == f"collection: {refused}."
    sent = gallery.identify(gallery.photo("obama.jpg"), collection="B\u00fcro 2")
    assert refusal(sent) == f"collection: {refused}."


def test_a_key_of_a_call_that_cannot_be_one_is_answered_with_the_rule(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "x" * 256}
    answer = client.post("/v1/enroll", json={}, headers=headers)
    assert "1 to 255 printable ASCII characters" in refusal(answer)


@pytest.mark.parametrize("depth", [33, 260, 900])
def test_what_is_nested_too_deeply_is_refused_and_not_stored(
    client: httpx.Client, gallery: Any, depth: int
) -> None:
    url = f"/v1/collections/{gallery.name}"
    json_headers = {"Content-Type": "application/json"}
    body = f'{{"metadata": {deep(depth)}}}'
    named = f'{{"person_id": "ada", "metadata": {deep(depth)}}}'
    for answer in (
        client.patch(url, content=body, headers=json_headers),
        client.post(f"{url}/persons", content=named, headers=json_headers),
        gallery.enroll("ada", gallery.photo("obama.jpg"), metadata=deep(depth)),
        gallery.identify(gallery.photo("obama.jpg"), filter=deep(depth)),
    ):
        # A body that is one JSON text may be refused before its fields are looked at.
        assert "nested more than" in refusal(answer)
    assert client.get(url).json()["metadata"] == {}
    assert client.get(f"{url}/persons").json()["items"] == []


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ('{"a": "\\ud83d"}', "metadata.a contains U+D83D (lone surrogate) at position 1"),
        ('{"a": "b\\u0000"}', "metadata.a contains U+0000 (control character) at position 2"),
        ('{"a": [1, NaN]}', "metadata.a[1] must be a finite number"),
        ('{"a": 1e999}', "metadata.a must be a finite number"),
        ('{"a": 12345678901234567890}', "send it as text"),
        (json.dumps({"a": "x" * 20_000}), "16,384 bytes"),
        (json.dumps(dict.fromkeys(map(str, range(1_001)))), "1,000 members"),
    ],
)
def test_metadata_that_cannot_be_returned_is_refused(
    client: httpx.Client, gallery: Any, metadata: str, named: str
) -> None:
    url = f"/v1/collections/{gallery.name}"
    body = f'{{"person_id": "ada", "metadata": {metadata}}}'
    headers = {"Content-Type": "application/json"}
    answer = client.post(f"{url}/persons", content=body, headers=headers)
    # What is no JSON by RFC 8259 is refused before its members are looked at.
    assert named in refusal(answer) or "not valid JSON" in refusal(answer)
    assert client.get(f"{url}/persons").json()["items"] == []
    answer = gallery.enroll("ada", gallery.photo("obama.jpg"), metadata=metadata)
    assert named in refusal(answer) or "not valid JSON" in refusal(answer)


def test_a_refusal_names_the_character_of_the_id(client: httpx.Client, gallery: Any) -> None:
    url = f"/v1/collections/{gallery.name}/persons"
    answer = client.post(url, json={"person_id": "ad\u202ea"})
    assert "U+202E RIGHT-TO-LEFT OVERRIDE at position 3" in refusal(answer)
    answer = gallery.enroll("ad\u200ba", gallery.photo("obama.jpg"))
    assert "U+200B ZERO WIDTH SPACE at position 3" in refusal(answer)
    body, headers = '{"person_id": "ada\\ud83d"}', {"Content-Type": "application/json"}
    refusal(client.post(url, content=body, headers=headers))
    assert client.get(url).json()["items"] == []


def test_an_id_is_one_however_it_is_composed(client: httpx.Client, gallery: Any) -> None:
    url = f"/v1/collections/{gallery.name}"
    photo, other = gallery.photo("obama.jpg"), gallery.photo("obama2.jpg")
    assert gallery.enroll(DECOMPOSED, photo).json()["person_id"] == COMPOSED
    assert gallery.enroll(COMPOSED, other).json()["person_id"] == COMPOSED
    (person,) = client.get(f"{url}/persons").json()["items"]
    assert (person["person_id"], person["faces"]) == (COMPOSED, 2)
    assert gallery.verify(photo, person_id=DECOMPOSED).json()["person_id"] == COMPOSED
    assert client.get(f"{url}/persons/{DECOMPOSED}").json()["person_id"] == COMPOSED
    assert len(client.get(f"{url}/persons/{DECOMPOSED}/faces").json()["items"]) == 2
    answer = client.post(f"{url}/persons", json={"person_id": DECOMPOSED})
    assert answer.json()["code"] == "person_exists"
    renewed = client.patch(f"{url}/persons/{DECOMPOSED}", json={"metadata": {"n": 1}}).json()
    assert (renewed["person_id"], renewed["metadata"]) == (COMPOSED, {"n": 1})
    client.post(f"{url}/persons", json={"person_id": "eve"}).raise_for_status()
    merged = client.post(f"{url}/persons/eve/merge", json={"into": DECOMPOSED}).json()
    assert merged["person_id"] == COMPOSED
    deleted = client.delete(f"{url}/persons/{DECOMPOSED}").json()["deleted"]
    assert deleted == {"persons": 1, "faces": 2}


def test_names_with_joiners_are_people(client: httpx.Client, gallery: Any) -> None:
    url = f"/v1/collections/{gallery.name}/persons"
    assert client.post(url, json={"person_id": PERSIAN}).json()["person_id"] == PERSIAN
    assert client.get(f"{url}/{PERSIAN}").json()["person_id"] == PERSIAN
    assert client.delete(f"{url}/{PERSIAN}").status_code == 200


@pytest.mark.parametrize("person_id", ["ad%00a", "%ED%A0%BD", "%E2%80%AE"])
def test_looking_for_what_cannot_be_there_is_a_404(
    client: httpx.Client, collection: str, person_id: str
) -> None:
    url = f"/v1/collections/{collection}/persons/{person_id}"
    for method in ("GET", "DELETE"):
        assert client.request(method, url).json()["code"] == "person_not_found"


def test_what_an_earlier_version_stored_is_marked(
    client: httpx.Client, services: Services, gallery: Any
) -> None:
    url = f"/v1/collections/{gallery.name}"
    gallery.enroll("ada", gallery.photo("obama.jpg")).raise_for_status()
    client.post(f"{url}/persons", json={"person_id": "eve", "metadata": {"n": 1}})
    record = services.gallery.store.collections.get(gallery.name)
    with services.gallery.store.database.writing() as connection:
        for statement, content in (
            ("UPDATE persons SET metadata = :m WHERE collection = :k AND person_id = 'ada'",
             '{"note": "\\ud83d", "n": NaN}'),
            ("UPDATE templates SET quality = :m WHERE collection = :k", deep(300)),
            ("UPDATE collections SET metadata = :m WHERE id = :k", deep(300)),
        ):  # fmt: skip
            connection.execute(text(statement), {"m": content, "k": record.key})
    ada, eve = client.get(f"{url}/persons").json()["items"]
    assert ada["metadata"] == {"note": "\ufffd", "n": None}
    assert "U+D83D (lone surrogate)" in ada["metadata_problem"]
    assert (eve["metadata"], eve["metadata_problem"]) == ({"n": 1}, None)
    assert "nested more than 32 deep" in client.get(url).json()["metadata_problem"]
    (face,) = client.get(f"{url}/faces").json()["items"]
    assert "nested more than 32 deep" in face["quality_problem"]
    assert client.get("/v1/collections").status_code == 200
    corrected = client.patch(f"{url}/persons/ada", json={"metadata": {"note": "new"}}).json()
    assert (corrected["metadata"], corrected["metadata_problem"]) == ({"note": "new"}, None)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_policy_has_finite_numbers(client: httpx.Client, collection: str, number: str) -> None:
    url, headers = f"/v1/collections/{collection}", {"Content-Type": "application/json"}
    for policy in (
        f'{{"identify_gate": {{"min_face_size_px": {number}}}}}',
        f'{{"target_fpir": {number}}}',
    ):
        body = f'{{"policy": {policy}}}'
        assert client.patch(url, content=body, headers=headers).status_code == 422
    assert client.get(url).status_code == 200


def test_a_filter_has_a_limit_and_types(client: httpx.Client, gallery: Any) -> None:
    photo = gallery.photo("obama.jpg")
    gallery.enroll("ada", photo, metadata='{"n": 1}').raise_for_status()
    gallery.enroll("eve", photo, metadata='{"n": true}').raise_for_status()
    many = json.dumps({f"m{i}": i for i in range(1_200)})
    detail = refusal(gallery.identify(photo, filter=many))
    assert detail == "filter must not have more than 32 members; this one has 1,200."
    for wanted, person in (("1", "ada"), ("1.0", "ada"), ("true", "eve")):
        answer = gallery.identify(photo, filter=f'{{"n": {wanted}}}').json()
        assert answer["searched"] == {"persons": 1, "faces": 1}
        assert answer["faces"][0]["person_id"] == person
    assert gallery.identify(photo, filter='{"n": "1"}').json()["faces"][0]["candidates"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/enroll", {"person_id": "ada", "embeddings": [[None] * 50_000] * 3}),
        ("/v1/enroll", {"person_id": "ada", "embeddings": [["x"]] * 900}),
        ("/v1/collections", {"name": "x", "policy": {f"k{i}": 1 for i in range(1_000)}}),
        ("/v1/collections", {"name": "x", "policy": {f"k{i}": 1 for i in range(60_000)}}),
        ("/v1/collections", {f"k{i}": 1 for i in range(1_000)}),
    ],
)
def test_of_many_findings_an_answer_lists_few(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert len(answer.content) < 2_000


def test_findings_that_are_not_listed_are_counted(client: httpx.Client) -> None:
    body = {"name": "x", "policy": {f"k{i}": 1 for i in range(1_000)}}
    said = client.post("/v1/collections", json=body).json()["detail"]
    assert said.startswith("policy.k0: There is no such field here; check its name, or leave it ")
    assert said.endswith("; and 990 more.")


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/collections", {"name": "x", "nam": 1}, "nam"),
        ("/v1/collections", {"name": "x", "policy": {"targetfpir": 0.01}}, "policy.targetfpir"),
        ("/v1/collections/default/persons", {"person_id": "y", "foo": 1}, "foo"),
        ("/v1/collections/default/persons/delete", {"person_ids": ["y"], "foo": 1}, "foo"),
        ("/v1/identify", {"file": "A" * 50_000}, "'file'"),
        ("/v1/identify", {"images": ["A" * 50_000]}, "'images'"),
    ],
)
def test_a_field_that_a_call_does_not_take(
    client: httpx.Client, path: str, body: dict[str, Any], name: str
) -> None:
    """Also if it has a photo, as the calls of other services have it in fields of other names."""
    answer = client.post(path, json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "unknown_field")
    assert name in problem["detail"]
