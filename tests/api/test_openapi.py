"""The OpenAPI document: the committed copy is the one that is served, and its examples validate."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from app.api.problems import problem_codes

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_committed_document_is_the_one_that_is_served(document: dict[str, Any]) -> None:
    """`make openapi` writes it."""
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_OPENAPI"):
        COMMITTED.write_text(text)
    assert COMMITTED.read_text() == text, "the API has changed: make openapi, and look at the diff"


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_operations_have_short_ids_and_a_sentence(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert {"identify", "list_persons", "read_person", "create_import"} <= set(ids)
    for name, operation in operations(document):
        assert operation["operationId"].isidentifier(), name
        assert operation["summary"][0].isupper(), name
        assert operation["summary"][-1] in ".:", name


def test_problems_are_declared_as_what_they_are(document: dict[str, Any]) -> None:
    codes = document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]
    assert codes == problem_codes()
    for name, operation in operations(document):
        failures = {k: v for k, v in operation["responses"].items() if int(k) >= 400}
        assert failures or name in ("GET /livez", "GET /metrics"), name
        for status, response in failures.items():
            (kind,) = response["content"]
            assert kind == "application/problem+json", (name, status)
            assert set(response["x-problem-codes"]) <= set(codes), (name, status)
            content = response["content"][kind]
            check(content["example"], content["schema"], document)


def test_bodies_and_answers_have_examples_that_validate(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            content = response.get("content", {}).get("application/json")
            if content is not None:
                has_example(content, document, f"{name} {status}")
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is not None:
            has_example(body, document, name)


def has_example(content: dict[str, Any], document: dict[str, Any], name: str) -> None:
    schema = resolved(content["schema"], document)
    examples = [content["example"]] if "example" in content else schema.get("examples", [])
    assert examples, f"{name} has no example"
    for example in examples:
        check(example, schema, document)


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = document["components"]["schemas"][reference] if reference else schema
    return found


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def check(instance: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    jsonschema.validate(instance, {**schema, "components": document["components"]})


def test_examples_of_schemas_validate(document: dict[str, Any]) -> None:
    checked = 0
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", []):
            check(example, schema, document)
            checked += 1
    assert checked >= 12


def test_examples_of_requests_validate(document: dict[str, Any]) -> None:
    calls = ["detect", "embed", "enroll", "verify", "identify"]
    for call in calls:
        content = document["paths"][f"/v1/{call}"]["post"]["requestBody"]["content"]
        assert set(content) == {"multipart/form-data", "application/json", "image/*"}
        body = content["application/json"]
        check(body["example"], body["schema"], document)


def test_real_answers_validate(document: dict[str, Any], presidents: Any) -> None:
    photo = {"image": presidents.photo("obama2.jpg")}
    fields = {
        "detect": {},
        "embed": {},
        "identify": {"collection": presidents.name},
        "verify": {"collection": presidents.name, "person_id": "obama"},
        "enroll": {"collection": presidents.name, "person_id": "obama"},
    }
    for call, data in fields.items():
        answer = presidents.client.post(f"/v1/{call}", data=data, files=photo).json()
        responses = document["paths"][f"/v1/{call}"]["post"]["responses"]
        check(answer, responses["200"]["content"]["application/json"]["schema"], document)
        problem = responses["422"]["content"]["application/problem+json"]
        refused = presidents.client.post(f"/v1/{call}", data={"image": "x"})
        check(refused.json(), problem["schema"], document)


def test_it_is_written_once_for_all_who_ask(client: httpx.Client) -> None:
    first, second = client.get("/openapi.json"), client.get("/openapi.json")
    assert first.headers["content-type"] == "application/json"
    assert first.content == second.content
    assert b'"openapi":"3.1.0"' in first.content
