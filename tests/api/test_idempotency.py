"""`Idempotency-Key`: an enrollment sent again is one enrollment."""

import asyncio
import base64
import hashlib
import json
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.api.endpoints.enrollment import EnrollFields, request_key
from app.api.main import create_app
from app.api.requests import IMAGE, Call
from app.faces.pipeline import FacePipeline
from app.services import Services, build_services
from app.settings import Settings
from tests.api.test_decisions import code_of

REPLAYED = "idempotency-replayed"


@pytest.fixture
def key() -> str:
    return str(uuid.uuid4())


def enroll(
    gallery: Any, key: str, *photos: bytes, person_id: str = "obama", **fields: str
) -> httpx.Response:
    answer: httpx.Response = gallery.client.post(
        "/v1/enroll",
        data={"person_id": person_id, "collection": gallery.name, **fields},
        files=[("image", photo) for photo in photos],
        headers={"Idempotency-Key": key},
    )
    return answer


def outcome(answer: httpx.Response) -> dict[str, Any]:
    """The part of an answer that is about the enrollment, not about the request."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return {k: body[k] for k in ("collection", "person_id", "enrolled", "rejected")}


def faces(gallery: Any) -> list[str]:
    listed = gallery.client.get(f"/v1/collections/{gallery.name}/faces").json()["items"]
    return [item["face_id"] for item in listed]


def test_the_same_call_is_answered_the_same(
    gallery: Any, key: str, blank_photo: bytes, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = (gallery.photo("obama.jpg"), blank_photo)
    first = enroll(gallery, key, *photos)
    assert REPLAYED not in first.headers
    assert len(first.json()["rejected"]) == 1

    def networks(*_: Any) -> Any:
        raise AssertionError("the networks ran again")

    monkeypatch.setattr(FacePipeline, "steps", networks)
    again = enroll(gallery, key, *photos)
    assert again.headers[REPLAYED] == "true"
    assert outcome(again) == outcome(first)
    assert outcome(again)["enrolled"][0]["duplicate"] is False
    assert again.json()["request_id"] != first.json()["request_id"]
    encoded = [base64.b64encode(photo).decode() for photo in photos]
    body = {"person_id": "obama", "collection": gallery.name, "image": encoded}
    as_json = gallery.client.post("/v1/enroll", json=body, headers={"Idempotency-Key": key})
    assert outcome(as_json) == outcome(first)
    assert len(faces(gallery)) == 1


def test_another_call_under_the_key_is_refused(gallery: Any, key: str) -> None:
    photo, other = gallery.photo("obama.jpg"), gallery.photo("obama2.jpg")
    enroll(gallery, key, photo).raise_for_status()
    for answer in (
        enroll(gallery, key, other),
        enroll(gallery, key, photo, other),
        enroll(gallery, key, photo, person_id="biden"),
        enroll(gallery, key, photo, metadata='{"a": 1}'),
        enroll(gallery, key, photo, face_selection="largest"),
    ):
        assert (answer.status_code, code_of(answer)) == (422, "idempotency_key_reused")
        assert answer.headers["content-type"] == "application/problem+json"
    assert len(faces(gallery)) == 1


def test_embeddings_have_keys_too(gallery: Any, key: str, services: Services) -> None:
    body = {
        "person_id": "ada",
        "collection": gallery.name,
        "embeddings": [[1.0] * services.pack.recogniser.dimension],
    }
    headers = {"Idempotency-Key": key}
    first = gallery.client.post("/v1/enroll", json=body, headers=headers)
    again = gallery.client.post("/v1/enroll", json=body, headers=headers)
    assert outcome(first) == outcome(again)
    body["embeddings"] = [[1.0] * (services.pack.recogniser.dimension - 1) + [0.5]]
    assert code_of(gallery.client.post("/v1/enroll", json=body, headers=headers)) == (
        "idempotency_key_reused"
    )


def test_calls_at_the_same_time_are_one_enrolment(gallery: Any, key: str) -> None:
    photo = gallery.photo("obama.jpg")
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: enroll(gallery, key, photo), range(4)))
    assert [outcome(answer) for answer in answers] == [outcome(answers[0])] * 4
    assert Counter(answer.headers.get(REPLAYED) for answer in answers) == {None: 1, "true": 3}
    assert len(faces(gallery)) == 1


def test_an_answer_lost_after_the_commit_is_given_again(
    gallery: Any, key: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = gallery.photo("obama.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(type(services.gallery), "follow", _fails)
        assert enroll(gallery, key, photo).status_code == 500
    (stored,) = faces(gallery)
    again = enroll(gallery, key, photo)
    assert again.headers[REPLAYED] == "true"
    assert outcome(again)["enrolled"][0]["face_id"] == stored


def _fails(*_: Any) -> Any:
    raise RuntimeError("between the commit and the answer")


def test_deleting_a_face_keeps_the_answer_deleting_the_person_does_not(
    gallery: Any, key: str
) -> None:
    photo = gallery.photo("obama.jpg")
    first = enroll(gallery, key, photo)
    base = f"/v1/collections/{gallery.name}"
    gallery.client.delete(f"{base}/faces/{faces(gallery)[0]}").raise_for_status()
    assert outcome(enroll(gallery, key, photo)) == outcome(first)
    assert faces(gallery) == []
    gallery.client.delete(f"{base}/persons/obama").raise_for_status()
    anew = enroll(gallery, key, photo)
    assert REPLAYED not in anew.headers
    assert faces(gallery) == [outcome(anew)["enrolled"][0]["face_id"]]


def test_a_key_is_free_again_after_a_day(
    gallery: Any, key: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    enroll(gallery, key, gallery.photo("obama.jpg")).raise_for_status()
    database = services.gallery.store.database
    real = database.clock
    monkeypatch.setattr(database, "clock", lambda: real() + timedelta(hours=24))
    other = enroll(gallery, key, gallery.photo("obama2.jpg"))
    assert other.status_code == 200
    assert REPLAYED not in other.headers


def test_a_refused_enrollment_may_be_corrected_under_its_key(
    gallery: Any, key: str, blank_photo: bytes
) -> None:
    assert code_of(enroll(gallery, key, blank_photo)) == "no_face"
    corrected = enroll(gallery, key, gallery.photo("obama.jpg"))
    assert (corrected.status_code, REPLAYED in corrected.headers) == (200, False)


@pytest.mark.parametrize("bad", ["", "x" * 256, "a\tb", "schl\u00fcssel"])
def test_keys_that_are_none(gallery: Any, bad: str) -> None:
    answer = gallery.client.post(
        "/v1/enroll",
        data={"person_id": "obama", "collection": gallery.name},
        files={"image": gallery.photo("obama.jpg")},
        headers=[(b"Idempotency-Key", bad.encode("latin-1"))],
    )
    assert (answer.status_code, code_of(answer)) == (422, "invalid_request")
    assert "Idempotency-Key" in answer.json()["detail"]
    assert faces(gallery) == []


def test_the_longest_key(gallery: Any) -> None:
    enroll(gallery, "~ " * 127 + "x", gallery.photo("obama.jpg")).raise_for_status()


def test_the_reference_shows_it(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/enroll"]["post"]
    (header,) = [one for one in operation["parameters"] if one["in"] == "header"]
    assert (header["in"], header["name"], header["required"]) == (
        "header",
        "Idempotency-Key",
        False,
    )
    assert "Idempotency-Replayed" in operation["responses"]["200"]["headers"]


def test_another_process_knows_the_answer(gallery: Any, key: str, services: Services) -> None:
    photo = gallery.photo("obama.jpg")
    first = enroll(gallery, key, photo)
    other = build_services(Settings(data_dir=services.settings.data_dir))

    async def ask_other() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(other))
        async with httpx.AsyncClient(transport=transport, base_url="http://other") as client:
            return await client.post(
                "/v1/enroll",
                data={"person_id": "obama", "collection": gallery.name},
                files={"image": photo},
                headers={"Idempotency-Key": key},
            )

    try:
        again = asyncio.run(ask_other())
    finally:
        other.close()
    assert again.headers[REPLAYED] == "true"
    assert outcome(again) == outcome(first)


def test_a_call_without_a_newer_field_keeps_its_digest() -> None:
    """A retry may reach a newer version than the call did."""
    fields = EnrollFields(person_id="ada", embeddings=[[1.0]])
    asked = {
        "person_id": "ada", "collection": "default", "metadata": None, "face_selection": "only",
        "embeddings": [[1.0]], "image": [],
    }  # fmt: skip
    before = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    assert request_key("k", Call(fields, {IMAGE: []})).request_digest == before
    named = fields.model_copy(update={"embedding_space": "es-1"})
    assert request_key("k", Call(named, {IMAGE: []})).request_digest != before
