"""Completes the OpenAPI document (bodies in three forms, and problem documents), and serves the
scripts of the pages that show it."""

import asyncio
import json
import stat
from collections.abc import Mapping, Sequence
from os import PathLike, stat_result
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from starlette.responses import FileResponse
from starlette.routing import Mount
from starlette.types import Scope

from app.api.problems import Problem

REFERENCE = "#/components/schemas/{model}"

PHOTO = {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, HEIC or AVIF."}
BASE64 = {"type": "string", "format": "byte", "description": "The photo in base64."}
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An access key, `lk_…`."},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
SAMPLE_BASE64 = "/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAP//////////"


def complete_document(app: FastAPI) -> None:
    """Add to the app's document the summary of each call, and the schema of problem documents.

    It is written once and served from memory.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            problem = Problem.model_json_schema(ref_template=REFERENCE)
            document["components"]["schemas"]["Problem"] = problem
            document["components"]["securitySchemes"] = SECURITY
            for methods in document["paths"].values():
                for operation in methods.values():
                    _summarise(operation)
                    if "401" in operation["responses"]:
                        # The empty one: without keys, on an address of this machine only.
                        operation["security"] = [*({name: []} for name in SECURITY), {}]
        assert app.openapi_schema is not None, "FastAPI keeps what it generates"
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents
    path = app.openapi_url
    assert path is not None, "this app has a document"
    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "path", None) != path]
    app.add_route(path, _Served(app).answer, include_in_schema=False)


class _Served:
    """The document as bytes. They are made on a thread and kept: generating the document takes
    0.3 s, and writing it 5 ms, in which the event loop would do nothing else."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._written: asyncio.Future[bytes] | None = None

    async def answer(self, request: Request) -> Response:
        if self._written is None:
            root = request.scope.get("root_path", "").rstrip("/")
            loop = asyncio.get_running_loop()
            self._written = loop.run_in_executor(request.app.state.parsing, self._write, root)
        # Others wait for it, too: it must not be cancelled with this request.
        written = await asyncio.shield(self._written)
        return Response(written, media_type="application/json")

    def _write(self, root: str) -> bytes:
        document = self._app.openapi()
        if root:  # the path under which a proxy publishes the service
            document = {**document, "servers": [{"url": root}]}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _summarise(operation: dict[str, Any]) -> None:
    """The first paragraph of a route's docstring is its summary, the rest its description."""
    summary, _, description = operation.pop("description").partition("\n\n")
    operation["summary"] = " ".join(summary.split())
    if description:
        operation["description"] = description


def photo_body(
    fields: type[BaseModel],
    example: Mapping[str, Any],
    *,
    photos: Sequence[str] = ("image",),
    required: Sequence[str] = ("image",),
) -> dict[str, Any]:
    """`openapi_extra` of a call that takes photos: a form, JSON, or one photo as the raw body with
    the fields as query parameters."""
    schema = fields.model_json_schema(ref_template=REFERENCE)
    properties = {name: _inline(value, schema) for name, value in schema["properties"].items()}
    needed = [*schema.get("required", []), *required]
    texts = {name: _without_null(value) for name, value in properties.items()}
    form = {name: _form_field(one, name in needed) for name, one in texts.items()}
    content: dict[str, Any] = {
        "multipart/form-data": {
            "schema": _object({**_photos(photos, PHOTO), **form}, needed),
        },
        "application/json": {
            "schema": _object({**_photos(photos, BASE64), **properties}, needed),
            "example": {**dict.fromkeys(required, SAMPLE_BASE64), **example},
        },
    }
    content["image/*"] = {"schema": PHOTO}
    return {
        "parameters": [_query(name, one) for name, one in texts.items()],
        "requestBody": {"required": True, "content": content},
    }


def _query(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A field as a query parameter of a raw body; one with a structure is JSON text there."""
    described = {k: v for k, v in schema.items() if k not in ("default", "example")}
    description = f"For a raw image body: {described.pop('description', name)}"
    if described.get("type") in ("object", "array"):
        described, description = {"type": "string"}, f"{description} As JSON text."
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": described,
    }


def _form_field(schema: Mapping[str, Any], required: bool) -> dict[str, Any]:
    """A field as a part of a form. Swagger UI sends optional fields with an empty value."""
    described = dict(schema)
    if described.get("type") == "array":
        described = {"type": "string", "description": f"{schema.get('description')} As JSON text."}
    if not required and "default" not in described:
        described.setdefault("example", "")
    return described


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema without null: a text field is left out instead."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return dict(schema)
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**rest, **kinds[0]}


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
    """Replace references to local definitions (enumerations) by the definitions."""
    if isinstance(value, dict):
        if "$ref" in value:
            name = value["$ref"].rpartition("/")[2]
            rest = {key: item for key, item in value.items() if key != "$ref"}
            return {**_inline(schema["$defs"][name], schema), **rest}
        return {key: _inline(item, schema) for key, item in value.items()}
    if isinstance(value, list):
        return [_inline(item, schema) for item in value]
    return value


NAME = "static-offline-docs"  # of fastapi-offline's mount
METHODS = ("GET", "HEAD")


class FilesInMemory(StaticFiles):
    """Reads each file once. A file that is opened for each request would stay open as long as a
    client reads nothing: such clients, who need no key, could use up the file descriptors."""

    def __init__(self, directory: str | PathLike[str]) -> None:
        super().__init__(directory=directory)
        self._contents: dict[str, bytes] = {}
        self._found: dict[str, tuple[str, stat_result]] = {}

    def lookup_path(self, path: str) -> tuple[str, stat_result | None]:
        """Find a file, and read it the first time. Called on a thread."""
        full_path, found = super().lookup_path(path)
        if found is not None and stat.S_ISREG(found.st_mode):
            if full_path not in self._contents:
                self._contents[full_path] = Path(full_path).read_bytes()
            self._found[path] = full_path, found
        return full_path, found

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The answer; without a thread if the file has been read already."""
        if path in self._found and scope["method"] in METHODS:
            return self.file_response(*self._found[path], scope)
        return await super().get_response(path, scope)

    def file_response(
        self,
        full_path: str | PathLike[str],
        stat_result: stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """The answer, which is empty if the client has the same version already."""
        answer = super().file_response(full_path, stat_result, scope, status_code)
        if isinstance(answer, FileResponse):
            content = self._contents[str(full_path)] if scope["method"] != "HEAD" else b""
            whole = Response(content, status_code)
            del answer.headers["accept-ranges"]
            whole.raw_headers = answer.raw_headers
            return whole
        return answer


def serve_from_memory(app: FastAPI) -> None:
    """Replace the files of fastapi-offline. Raises LookupError if it has none."""
    mounts = [one for one in app.routes if isinstance(one, Mount) and one.name == NAME]
    if not mounts or not isinstance(mounts[0].app, StaticFiles):
        raise LookupError(f"fastapi-offline has no mount {NAME}")
    mounts[0].app = FilesInMemory(mounts[0].app.directory or "")
