"""Reading a call: multipart form, JSON with base64, or a raw image body, all to one shape.

Photos never touch the disk: the form parser is told to keep every part in memory, and the whole
body is bounded before and while it is read.
"""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.api.base64_photos import decode_base64
from app.api.errors import describe_validation
from app.errors import (
    InvalidRequest,
    MissingField,
    RequestTooLarge,
    UnknownField,
    UnsupportedMediaType,
)
from app.settings import Settings

IMAGE = "image"
REFERENCE = "reference"
MAX_FORM_FIELDS = 64

Fields = TypeVar("Fields", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call(Generic[Fields]):
    """One call as its route sees it: checked fields, and the bytes of its photos by field."""

    fields: Fields
    photos: Mapping[str, Sequence[bytes]]

    @property
    def images(self) -> Sequence[bytes]:
        return self.photos[IMAGE]


class InMemoryParser(MultiPartParser):
    """Starlette's form parser without its spool files."""

    def __init__(
        self, request: Request, body: AsyncGenerator[bytes, None], settings: Settings
    ) -> None:
        super().__init__(
            request.headers,
            body,
            max_files=settings.max_images + 1,
            max_fields=MAX_FORM_FIELDS,
            max_part_size=settings.max_request_bytes,
        )
        self.spool_max_size = settings.max_request_bytes + 1


async def read_call(
    request: Request,
    model: type[Fields],
    photo_fields: Sequence[str] = (IMAGE,),
    *,
    optional: Sequence[str] = (),
) -> Call[Fields]:
    """Read a call whose photos lie in `photo_fields`, of which `optional` may be missing.

    Query parameters count as fields. Raises the InvalidRequest family, UnsupportedMediaType or
    RequestTooLarge, with a sentence that names the field.
    """
    settings: Settings = request.app.state.services.settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    values: dict[str, Any] = dict(request.query_params)
    if kind == "multipart/form-data":
        form_values, photos = await _read_form(request, settings, photo_fields)
    elif kind == "application/json":
        form_values, photos = await _read_json(request, settings, photo_fields)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        form_values, photos = {}, {IMAGE: [await _read_body(request, settings)]}
    else:
        raise UnsupportedMediaType(
            f"The body's content type is '{kind or 'missing'}'; send multipart/form-data (with "
            "curl: -F image=@photo.jpg), application/json with base64, or a raw image/* body."
        )
    values |= form_values
    _check_names(values, photos, model, photo_fields)
    _check_photos(photos, photo_fields, optional, settings)
    by_field = {name: photos.get(name, []) for name in photo_fields}
    return Call(_validate(model, values), by_field)


def _validate(model: type[Fields], values: Mapping[str, Any]) -> Fields:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        findings = error.errors()
        if any(item["type"] == "missing" for item in findings):
            missing = ", ".join(str(i["loc"][0]) for i in findings if i["type"] == "missing")
            raise MissingField(f"The call needs the field {missing}.") from error
        raise InvalidRequest(describe_validation(findings)) from error


def _check_names(
    values: Mapping[str, Any],
    photos: Mapping[str, Sequence[bytes]],
    model: type[BaseModel],
    photo_fields: Sequence[str],
) -> None:
    known = {*model.model_fields, *photo_fields}
    unknown = [name for name in (*values, *photos) if name not in known]
    if unknown:
        raise UnknownField(
            f"This call takes no field '{unknown[0]}'; it takes {', '.join(sorted(known))}. "
            f"Photos go into '{IMAGE}'."
        )


def _check_photos(
    photos: Mapping[str, Sequence[bytes]],
    photo_fields: Sequence[str],
    optional: Sequence[str],
    settings: Settings,
) -> None:
    for name in photo_fields:
        if not photos.get(name) and name not in optional:
            raise MissingField(
                f"The call needs a photo in the field '{name}' (with curl: -F {name}=@photo.jpg)."
            )
    count = sum(len(images) for images in photos.values())
    if count > settings.max_images:
        raise RequestTooLarge(
            f"{count} images were sent; at most {settings.max_images} fit one request. Split it."
        )


async def _read_form(
    request: Request, settings: Settings, photo_fields: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    try:
        form = await InMemoryParser(request, _bounded(request, settings), settings).parse()
    except MultiPartException as error:
        if "Too many" in error.message:
            raise RequestTooLarge(f"{error.message}. Split the request.") from error
        raise InvalidRequest(f"The form cannot be read: {error.message}") from error
    except (KeyError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            "The form has no boundary or is not UTF-8; let your client library write the header."
        ) from error
    try:
        return await _sort_parts(form, photo_fields)
    finally:
        await form.close()


async def _sort_parts(
    form: FormData, photo_fields: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    values: dict[str, Any] = {}
    photos: dict[str, list[bytes]] = {}
    for name, part in form.multi_items():
        if isinstance(part, UploadFile):
            data = await part.read()
            if data or part.filename:  # a browser sends a file field left empty as neither
                photos.setdefault(name, []).append(data)
        elif name in photo_fields and part == "":
            continue
        elif name in photo_fields:
            raise InvalidRequest(
                f"'{name}' came as text, not as a file; with curl write -F {name}=@photo.jpg."
            )
        elif name in values:
            raise InvalidRequest(f"The field '{name}' came more than once.")
        else:
            values[name] = part
    return values, photos


async def _read_json(
    request: Request, settings: Settings, photo_fields: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    try:
        content = json.loads(await _read_body(request, settings))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON.") from error
    if not isinstance(content, dict):
        raise InvalidRequest("The body must be a JSON object.")
    photos = {}
    for name in photo_fields:
        encoded = content.pop(name, None)
        if encoded is not None:
            items = encoded if isinstance(encoded, list) else [encoded]
            photos[name] = [_decode_photo(name, item) for item in items]
    return content, photos


def _decode_photo(name: str, text: Any) -> bytes:
    if isinstance(text, str):
        try:
            return decode_base64(text)
        except ValueError:
            pass
    raise InvalidRequest(
        f"'{name}' must be a photo in base64 or a list of such photos; URLs are not fetched."
    )


async def _read_body(request: Request, settings: Settings) -> bytes:
    return b"".join([chunk async for chunk in _bounded(request, settings)])


async def _bounded(request: Request, settings: Settings) -> AsyncGenerator[bytes, None]:
    """The body as it comes, or RequestTooLarge as soon as it is known to be."""
    limit = settings.max_request_bytes
    too_large = RequestTooLarge(f"The request is larger than {limit:,} bytes; split it.")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        yield chunk
