"""Reads a call from a multipart form, JSON with base64, or a raw image body.

Photos are never written to disk. Bodies of more than 64 KiB are parsed off the event loop.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.api.access import access_of
from app.api.bodies import body_of, parse_form, sort_parts
from app.api.json_bodies import (
    SMALL,
    LongText,
    decode_base64,
    parse_with_long_texts,
)
from app.api.problems import describe_validation
from app.api.query_parameters import refuse_repeated
from app.errors import (
    ImageTooLarge,
    InvalidRequest,
    MissingField,
    RequestTooLarge,
    UnknownField,
    UnsupportedMediaType,
)
from app.settings import Settings

Body = bytes | bytearray

IMAGE = "image"
REFERENCE = "reference"

Fields = TypeVar("Fields", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call(Generic[Fields]):
    """One call as its route sees it: checked fields, and the bytes of its photos by field."""

    fields: Fields
    photos: Mapping[str, Sequence[bytes]]

    @property
    def images(self) -> Sequence[bytes]:
        return self.photos[IMAGE]


async def read_call(
    request: Request,
    model: type[Fields],
    photo_fields: Sequence[str] = (IMAGE,),
    *,
    optional: Sequence[str] = (),
) -> Call[Fields]:
    """Read a call whose photos are in `photo_fields`, of which `optional` may be missing.

    Query parameters count as fields. Raises the InvalidRequest family, UnsupportedMediaType or
    RequestTooLarge, with a sentence that names the field; CollectionNotFound if the access key is
    not for the collection that the call names; RateLimited or QuotaExceeded if it may not send as
    many photos.
    """
    body = await body_of(request)
    content_type = request.headers.get("content-type", "")
    refuse_repeated(request)
    query = dict(request.query_params)
    settings: Settings = request.app.state.services.settings
    reader = _Reader(model, photo_fields, optional, settings)
    if len(body) <= SMALL:
        call = reader.read(content_type, query, body)
    else:
        loop = asyncio.get_running_loop()
        parsing: Executor = request.app.state.parsing
        call = await loop.run_in_executor(parsing, reader.read, content_type, query, body)
    collection = getattr(call.fields, "collection", None)
    if collection is not None:
        access_of(request).require_collection(collection)
    await access_of(request).count_photos(sum(map(len, call.photos.values())))
    return call


@dataclass(frozen=True, slots=True)
class _Reader(Generic[Fields]):
    """The fields that a call takes, and how it is read from a body."""

    model: type[Fields]
    photo_fields: Sequence[str]
    optional: Sequence[str]
    settings: Settings

    def read(self, content_type: str, query: dict[str, Any], body: Body) -> Call[Fields]:
        values, photos = self._parts(content_type, body)
        if twice := query.keys() & values.keys():
            raise InvalidRequest(
                f"The field '{min(twice)}' was sent in the query and in the body; send it once."
            )
        values = query | values
        _check_names(values, photos, self.model, self.photo_fields)
        _check_photos(photos, self.photo_fields, self.optional, self.settings)
        by_field = {name: photos.get(name, []) for name in self.photo_fields}
        return Call(_validate(self.model, values), by_field)

    def _parts(
        self, content_type: str, body: Body
    ) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            form = parse_form(content_type, body, self.settings.max_images + 1)
            return sort_parts(form, self.photo_fields)
        if kind == "application/json":
            values, photos = _read_json(body, self.settings, self.model, self.photo_fields)
            _check_kinds(values, self.model)
            return values, photos
        if kind.startswith("image/") or kind == "application/octet-stream":
            return {}, {IMAGE: [bytes(body)]}
        raise UnsupportedMediaType(
            f"The body's content type is '{kind or 'missing'}'; send multipart/form-data (with "
            "curl: -F image=@photo.jpg), application/json with base64, or a raw image/* body."
        )


def _validate(model: type[Fields], values: Mapping[str, Any]) -> Fields:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        findings = error.errors()
        if any(item["type"] == "missing" for item in findings):
            missing = ", ".join(str(i["loc"][0]) for i in findings if i["type"] == "missing")
            raise MissingField(f"The call needs the field {missing}.") from error
        raise InvalidRequest(describe_validation(findings)) from error


def _check_kinds(values: Mapping[str, Any], model: type[BaseModel]) -> None:
    """In JSON a number is a number; forms and query parameters have it as text. An empty text
    counts as not sent, see `CallFields`."""
    kinds_of = _kinds_of(model)
    for name, value in values.items():
        kinds = kinds_of.get(name)
        if value in (None, ""):
            continue
        if kinds and (isinstance(value, str) or isinstance(value, bool) != (bool in kinds)):
            kind = "true or false" if bool in kinds else "a number"
            quotes = ", without quotes" if isinstance(value, str) else ""
            raise InvalidRequest(f"{name}: Input should be {kind}{quotes}.")


@cache
def _kinds_of(model: type[BaseModel]) -> Mapping[str, frozenset[type]]:
    """The kinds of numbers, and truth values, that each field may have."""
    return {
        name: frozenset({bool, int, float}.intersection(_types(field.annotation)))
        for name, field in model.model_fields.items()
    }


def _types(annotation: Any) -> Iterator[Any]:
    """The types of which a field may be."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _types(parts[0])
    elif origin in (Union, UnionType):
        for part in parts:
            yield from _types(part)
    else:
        yield annotation


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


def _read_json(
    body: Body, settings: Settings, model: type[BaseModel], photo_fields: Sequence[str]
) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    try:
        content, long_texts = parse_with_long_texts(body)
    except ValueError as error:
        raise InvalidRequest(f"The body cannot be read. {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequest("The body must be a JSON object.")
    photos = {}
    for name in photo_fields:
        encoded = content.pop(name, None)
        if encoded is not None:
            items = encoded if isinstance(encoded, list) else [encoded]
            taken = [long_texts.take(item) for item in items]
            photos[name] = [_decode_photo(name, item, settings) for item in taken]
    try:
        long_texts.check_all_taken()
    except ValueError as error:
        _check_names(content, photos, model, photo_fields)  # the field of a photo, misspelt
        raise InvalidRequest(str(error)) from error
    return content, photos


def _decode_photo(name: str, text: Any, settings: Settings) -> bytes:
    """Decode a photo from base64. A long text still has JSON's escapes in it."""
    try:
        if isinstance(text, LongText):
            # Twice the length of base64, to allow for line breaks and escapes.
            if len(text.raw) > settings.max_image_bytes * 8 // 3:
                raise ImageTooLarge(
                    f"'{name}' has {len(text.raw):,} characters of base64; an image may have at "
                    f"most {settings.max_image_bytes:,} bytes."
                )
            return decode_base64(text.raw, escaped=True)
        if isinstance(text, str):
            return decode_base64(text)
    except ValueError:
        pass
    raise InvalidRequest(
        f"'{name}' must be a photo in base64 or a list of such photos; URLs are not fetched."
    )
