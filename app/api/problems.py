"""Problem documents, and which of them a route can answer with, for the OpenAPI document."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app import errors
from app.errors import LikenessError

MEDIA_TYPE = "application/problem+json"
TYPE = "urn:likeness:problem:"

# Problems of any call below /v1.
ANY_CALL: tuple[type[LikenessError], ...] = (
    errors.InvalidRequest,
    errors.UnknownField,
    errors.Unauthenticated,
    errors.Forbidden,
    errors.RateLimited,
    errors.Overloaded,
    errors.DeadlineExceeded,
    errors.StoreUnavailable,
    errors.EncryptionKeyMissing,
    errors.DamagedData,
    LikenessError,
)
ANY_BODY = (errors.RequestTooLarge, errors.RequestTimeout, errors.UnsupportedEncoding)
ANY_WRITE = (errors.StoreFull,)
PHOTOS = (
    *ANY_BODY,
    errors.QuotaExceeded,
    errors.MissingField,
    errors.UnsupportedMediaType,
    errors.EmptyImage,
    errors.UnsupportedImage,
    errors.UnreadableImage,
    errors.ImageTooLarge,
    errors.LivenessUnavailable,
    errors.WorkerDied,
)
ONE_FACE = (
    errors.NoFace,
    errors.SeveralFaces,
    errors.FaceTooSmall,
    errors.LowQuality,
    errors.NotLive,
)
IN_COLLECTION = (errors.CollectionNotFound,)
IN_SPACE = (*IN_COLLECTION, errors.EmbeddingSpaceMismatch)


def problem_codes() -> list[str]:
    """Every code that a problem document can carry, sorted."""
    never_over_http = (errors.StartupError, errors.BackupError)
    classes = [one for one in vars(errors).values() if isinstance(one, type)]
    found = {
        one.code
        for one in classes
        if issubclass(one, LikenessError) and not issubclass(one, never_over_http)
    }
    return sorted(found)


class Problem(BaseModel):
    """RFC 9457 problem document; `code` is stable, further members depend on it."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:likeness:problem:no_face",
                    "title": "No face was found",
                    "status": 422,
                    "detail": "No face was found in the photo; send one where the face is at "
                    "least 32 pixels wide, upright and not covered.",
                    "code": "no_face",
                    "request_id": "0d7c4c0b2c5f4c0c8f5d3b1f8e6a9b7d",
                }
            ]
        },
    )
    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(json_schema_extra={"enum": list(problem_codes())})]
    request_id: str | None


def problems(
    *given: Iterable[type[LikenessError]], always: Iterable[type[LikenessError]] = ANY_CALL
) -> dict[int | str, dict[str, Any]]:
    """The responses, by status, of a call with the given problems and those of any call below /v1.
    Each lists its codes, in its description and as `x-problem-codes`."""
    by_status: dict[int, dict[str, str]] = {}
    for one in [*always, *(error for group in given for error in group)]:
        by_status.setdefault(one.status, {})[one.code] = one.title
    return {status: _response(status, codes) for status, codes in sorted(by_status.items())}


def _response(status: int, titles: dict[str, str]) -> dict[str, Any]:
    code, title = next(iter(titles.items()))
    example = {
        "type": f"{TYPE}{code}",
        "title": title,
        "status": status,
        "detail": "What happened, to which value, and what to do.",
        "code": code,
        "request_id": "0d7c4c0b2c5f4c0c8f5d3b1f8e6a9b7d",
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        "description": " ".join(f"`{code}`: {title}." for code, title in titles.items()),
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
        "x-problem-codes": list(titles),
    }
