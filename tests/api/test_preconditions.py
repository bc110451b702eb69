"""Changes of what somebody else has changed meanwhile are refused, where the client asks for it."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.api.test_decisions import code_of


@pytest.fixture
def ada(client: httpx.Client, collection: str) -> str:
    persons = f"/v1/collections/{collection}/persons"
    client.post(persons, json={"person_id": "ada", "metadata": {"n": 0}}).raise_for_status()
    return f"{persons}/ada"


@pytest.mark.parametrize("of", ["person", "collection"])
def test_the_second_of_two_who_read_the_same_is_refused(
    client: httpx.Client, collection: str, ada: str, of: str
) -> None:
    url = ada if of == "person" else f"/v1/collections/{collection}"
    read = {"If-Match": client.get(url).headers["etag"]}
    first = client.patch(url, json={"metadata": {"n": 1}}, headers=read)
    assert first.status_code == 200
    second = client.patch(url, json={"metadata": {"n": 2}}, headers=read)
    assert (second.status_code, code_of(second)) == (412, "precondition_failed")
    assert client.get(url).json()["metadata"] == {"n": 1}
    assert client.get(url).headers["etag"] == first.headers["etag"] != read["If-Match"]
    again = {"If-Match": first.headers["etag"]}
    assert client.patch(url, json={"metadata": {"n": 2}}, headers=again).status_code == 200


def test_of_many_at_once_one_succeeds(client: httpx.Client, ada: str) -> None:
    """So that counting up loses nothing."""

    def add(_: int) -> None:
        while True:
            answer = client.get(ada)
            count, read = answer.json()["metadata"]["n"], {"If-Match": answer.headers["etag"]}
            changed = client.patch(ada, json={"metadata": {"n": count + 1}}, headers=read)
            if changed.status_code == 200:
                return
            assert code_of(changed) == "precondition_failed"

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(12)))
    assert client.get(ada).json()["metadata"] == {"n": 12}


def test_a_person_who_was_changed_is_not_deleted(client: httpx.Client, ada: str) -> None:
    read = {"If-Match": client.get(ada).headers["etag"]}
    changed = client.patch(ada, json={"metadata": {}})
    assert code_of(client.delete(ada, headers=read)) == "precondition_failed"
    read = {"If-Match": changed.headers["etag"]}
    assert client.delete(ada, headers=read).json()["deleted"]["persons"] == 1


def test_a_changed_person_keeps_the_id(client: httpx.Client, ada: str) -> None:
    stale = {"If-Match": '"0"'}
    answer = client.patch(ada, json={"person_id": "eve"}, headers=stale)
    assert code_of(answer) == "precondition_failed"
    assert client.get(ada).status_code == 200


def test_a_policy_changes_the_tag_of_its_collection(client: httpx.Client, collection: str) -> None:
    url = f"/v1/collections/{collection}"
    read = {"If-Match": client.get(url).headers["etag"]}
    client.patch(url, json={"policy": {"target_fpir": 0.02}}, headers=read).raise_for_status()
    refused = client.patch(url, json={"policy": {"target_fpir": 0.05}}, headers=read)
    assert code_of(refused) == "precondition_failed"
    assert client.get(url).json()["policy"]["target_fpir"] == 0.02


def test_somebody_new_under_the_same_id_is_another(client: httpx.Client, ada: str) -> None:
    read = {"If-Match": client.get(ada).headers["etag"]}
    client.delete(ada).raise_for_status()
    body = {"person_id": "ada", "metadata": {"n": 0}}
    client.post(ada.removesuffix("/ada"), json=body).raise_for_status()
    assert code_of(client.delete(ada, headers=read)) == "precondition_failed"


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ("*", 200), ('"x", {}', 200), ('{},"x"', 200), ("W/{}", 200), ('"x"', 412),
        ("", 422), (",", 422), ("x", 422), ('{}"x"', 422), ('"x', 422), ("{} x", 422), ('"ü"', 422),
    ],
)  # fmt: skip
def test_forms_of_the_header(client: httpx.Client, ada: str, form: str, status: int) -> None:
    value = form.format(client.get(ada).headers["etag"]).encode()
    answer = client.patch(ada, json={"metadata": {}}, headers={b"If-Match": value})
    assert answer.status_code == status
    if status == 422:
        assert "If-Match" in answer.json()["detail"]
