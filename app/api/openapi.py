"""The parts of the OpenAPI document that FastAPI cannot see: bodies that come in three forms."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from app.api.schemas.common import Problem

PHOTO = {"type": "string", "format": "binary", "description": "JPEG, PNG or WebP."}
BASE64 = {"type": "string", "format": "byte", "description": "The photo in base64."}
SAMPLE_BASE64 = "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAP//////////"

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": Problem,
        "description": "The request cannot be served as it is; `code` and `detail` say why.",
        "content": {"application/problem+json": {}},
    },
    "5XX": {
        "model": Problem,
        "description": "The service cannot serve now; `Retry-After` says when to try again.",
        "content": {"application/problem+json": {}},
    },
}


def photo_body(
    fields: type[BaseModel],
    example: Mapping[str, Any],
    *,
    photos: Sequence[str] = ("image",),
    required: Sequence[str] = ("image",),
    raw: bool = True,
) -> dict[str, Any]:
    """`openapi_extra` of a call that takes photos: a form, JSON, and a raw body where one photo
    says it all (fields then go into the query)."""
    schema = fields.model_json_schema(ref_template="#/components/schemas/{model}")
    properties = {name: _inline(value, schema) for name, value in schema["properties"].items()}
    needed = [*schema.get("required", []), *required]
    content: dict[str, Any] = {
        "multipart/form-data": {
            "schema": _object({**_photos(photos, PHOTO), **properties}, needed),
        },
        "application/json": {
            "schema": _object({**_photos(photos, BASE64), **properties}, needed),
            "example": {**dict.fromkeys(required, SAMPLE_BASE64), **example},
        },
    }
    if raw:
        content["image/*"] = {"schema": PHOTO}
    return {"requestBody": {"required": True, "content": content}}


def _photos(names: Sequence[str], one: Mapping[str, Any]) -> dict[str, Any]:
    several = {"type": "array", "items": one}
    return {name: {"anyOf": [one, several]} if name == "image" else one for name in names}


def _object(properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": dict(properties),
        "additionalProperties": False,
    }
    return {**schema, "required": list(required)} if required else schema


def _inline(value: Any, schema: Mapping[str, Any]) -> Any:
    """Put local definitions (enumerations) in the place of their references."""
    if isinstance(value, dict):
        if "$ref" in value:
            name = value["$ref"].rpartition("/")[2]
            rest = {key: item for key, item in value.items() if key != "$ref"}
            return {**_inline(schema["$defs"][name], schema), **rest}
        return {key: _inline(item, schema) for key, item in value.items()}
    if isinstance(value, list):
        return [_inline(item, schema) for item in value]
    return value
