"""In JSON, numbers are numbers: `true` and `"1"` are refused, as text they stay in forms."""

import base64
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from app.api.endpoints.access_keys import LimitFields, RotationFields
from app.services import Services
from tests.api.test_decisions import code_of

EMBED = {"person_id": "ada", "collection": "default"}


def refused(answer: httpx.Response, name: str) -> None:
    assert (answer.status_code, code_of(answer)) == (422, "invalid_request"), answer.text
    assert name in answer.json()["detail"]


@pytest.mark.parametrize("wrong", [True, "1"])
def test_a_number_of_an_embedding(client: httpx.Client, services: Services, wrong: Any) -> None:
    numbers = [wrong, *[0.0] * (services.pack.recogniser.dimension - 1)]
    refused(client.post("/v1/enroll", json={**EMBED, "embeddings": [numbers]}), "embeddings.0.0")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("top_k", "1"),
        ("top_k", True),
        ("threshold", "0.5"),
        ("target_fpir", "0.01"),
        ("max_faces", True),
        ("liveness", "true"),
        ("liveness", 1),
    ],
)
def test_a_field_of_a_call_with_photos(client: httpx.Client, field: str, wrong: Any) -> None:
    refused(client.post("/v1/identify", json={"image": "AAAA", field: wrong}), field)


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ({"target_fpir": "0.01"}, "target_fpir"),
        ({"retention_days": True}, "retention_days"),
        ({"keep_crops": "yes"}, "keep_crops"),
        ({"identify_gate": {"min_sharpness": "8"}}, "min_sharpness"),
    ],
)
def test_a_policy(client: httpx.Client, policy: dict[str, Any], name: str) -> None:
    refused(client.post("/v1/collections", json={"name": "strict", "policy": policy}), name)
    refused(client.patch("/v1/collections/default", json={"policy": policy}), name)


@pytest.mark.parametrize("wrong", ["5", True])
def test_numbers_of_an_access_key(wrong: Any) -> None:
    for model, field in ((LimitFields, "photos_per_day"), (RotationFields, "overlap_hours")):
        with pytest.raises(ValidationError, match=field):
            model.model_validate({field: wrong})


def test_a_whole_number_may_be_written_with_a_fraction_of_0(
    client: httpx.Client, astronaut: bytes
) -> None:
    """JSON does not tell them apart."""
    made = client.post("/v1/collections", json={"name": "w", "policy": {"retention_days": 30.0}})
    assert made.json()["policy"]["retention_days"] == 30
    refused(
        client.patch("/v1/collections/w", json={"policy": {"retention_days": 30.5}}),
        "retention_days",
    )
    call = {"image": base64.b64encode(astronaut).decode(), "max_faces": 1.0}
    limits = LimitFields.model_validate({"photos_per_day": 10.0, "concurrent_requests": 2.0})
    assert (limits.photos_per_day, limits.concurrent_requests) == (10, 2)
    assert client.post("/v1/detect", json=call).status_code == 200


def test_forms_and_query_parameters_are_text(client: httpx.Client, astronaut: bytes) -> None:
    photo = {"image": ("photo.jpg", astronaut, "image/jpeg")}
    in_form = client.post("/v1/detect", files=photo, data={"max_faces": "1", "liveness": "false"})
    in_query = client.post("/v1/detect?max_faces=1&liveness=false", files=photo)
    assert (in_form.status_code, in_query.status_code) == (200, 200)
    assert client.get("/v1/collections?limit=1").status_code == 200


def test_a_field_is_sent_once(client: httpx.Client, astronaut: bytes) -> None:
    """Otherwise one of two thresholds would decide without a word."""
    photo = {"image": ("photo.jpg", astronaut, "image/jpeg")}
    fields = {"max_faces": "1"}
    for answer in (
        client.post("/v1/detect?max_faces=1&max_faces=2", files=photo),
        client.post("/v1/detect?max_faces=2", files=photo, data=fields),
        client.post("/v1/detect?max_faces=1", files=photo, data=fields),
        client.get("/v1/collections?limit=1&limit=2"),
    ):
        refused(answer, "send it once")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_number_of_a_form_is_finite(client: httpx.Client, astronaut: bytes, number: str) -> None:
    photo = {"image": ("photo.jpg", astronaut, "image/jpeg")}
    for field in ("threshold", "target_fpir", "target_fmr"):
        answer = client.post("/v1/identify", files=photo, data={field: number})
        refused(answer, f"{field}: Input should be a finite number")
    url = f"/v1/collections/default/imports?near_duplicate={number}"
    refused(client.post(url), "near_duplicate: Input should be a finite number")


def test_an_example_is_of_the_field(client: httpx.Client) -> None:
    for field, example in (("embeddings", "[[0.12, -0.03]]"), ("metadata", '{"team": "night"}')):
        form = {"person_id": (None, "ada"), field: (None, "x")}  # multipart
        answer = client.post("/v1/enroll", files=form)
        refused(answer, f"{field}: must be JSON, for example {example}")
