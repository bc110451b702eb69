"""`/v1/keys`: access keys. The command line has the same, `likeness keys`."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from fastapi import Path, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.access.keys import (
    MAX_COUNT,
    MAX_RATE,
    MIN_RATE,
    WHOLE_SERVICE,
    AccessKey,
    KeyLimits,
    NewKey,
    Scope,
)
from app.access.registry import LEASE_S
from app.api.access import needs
from app.api.context import Context
from app.api.fields import CollectionName, Moment, Name
from app.api.json_bodies import JsonRoute
from app.api.problems import ANY_BODY, ANY_WRITE, problems
from app.api.responses import TIME, Answer, Example, with_example, written_answer
from app.api.routers import GalleryRouter
from app.decision.policy import WHOLE_NUMBER
from app.errors import AccessKeyExists, AccessKeyNotFound, AccessPepperDiffers

router = GalleryRouter(prefix="/v1/keys", tags=["access"], route_class=JsonRoute)
KeyInPath = Annotated[str, Path(min_length=1, max_length=64, description="Id or name of a key.")]
NO_STORE = {"Cache-Control": "no-store"}  # the answer holds a token

KeyName = Annotated[Name, Field(description="Name of the key's user.")]
RequestRate = Annotated[float, Field(ge=MIN_RATE, le=MAX_RATE, allow_inf_nan=False)]
Scopes = Annotated[
    list[Scope], Field(min_length=1, max_length=64, description="What the key allows.")
]


def _in_future(value: datetime) -> datetime:
    if value <= datetime.now(UTC):
        raise ValueError("must be in the future")
    return value


class LimitFields(BaseModel):
    """The limits of a key; null: no limit. All keys of one name share them."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"photos_per_second": 5, "photos_per_day": 100_000}]},
    )
    requests_per_second: Annotated[
        float | None,
        Field(
            ge=MIN_RATE,
            le=MAX_RATE,
            allow_inf_nan=False,
            description="Requests a second on average.",
        ),
    ] = None
    photos_per_second: Annotated[
        float | None,
        Field(
            ge=MIN_RATE, le=MAX_RATE, allow_inf_nan=False, description="Photos a second on average."
        ),
    ] = None
    concurrent_requests: Annotated[
        int | None,
        Field(ge=1, le=MAX_COUNT, description="Requests that are processed at a time."),
        WHOLE_NUMBER,
    ] = None
    photos_per_day: Annotated[
        int | None,
        Field(ge=1, le=MAX_COUNT, description="Photos a day, from midnight to midnight UTC."),
        WHOLE_NUMBER,
    ] = None

    def limits(self) -> KeyLimits:
        """In domain form."""
        return KeyLimits(**self.model_dump())


class NewKeyFields(BaseModel):
    """A key to create."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "entrance-1", "scopes": ["identify"], "collections": ["staff"]}]
        },
    )
    name: KeyName
    scopes: Scopes
    collections: Annotated[
        list[CollectionName] | None,
        Field(
            min_length=1,
            max_length=1000,
            description="The collections that the key is limited to; null: all.",
        ),
    ] = None
    expires_at: Annotated[Moment, AfterValidator(_in_future)] | None = None
    limits: Annotated[
        LimitFields, Field(default_factory=LimitFields, description="Limits of its use.")
    ]

    @model_validator(mode="after")
    def _of_the_whole_service(self) -> Self:
        wrong = sorted(WHOLE_SERVICE.intersection(self.scopes))
        if self.collections is not None and wrong:
            raise ValueError(
                f"the scope '{wrong[0]}' concerns the whole service; a key that is limited to "
                "collections cannot have it"
            )
        return self


class RotationFields(BaseModel):
    """How long the old token stays usable."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"examples": [{"overlap_hours": 24}]}
    )
    overlap_hours: Annotated[float, Field(ge=0, le=24 * 90, allow_inf_nan=False)] = 24.0


class KeyInfo(BaseModel):
    """A key without its token, which is shown once and stored nowhere."""

    model_config = with_example()
    key_id: Annotated[str, Example("q7w2m9x4k6ab")]
    name: Annotated[str, Example("entrance-1")]
    scopes: Annotated[list[Scope], Example(["identify"])]
    collections: Annotated[list[str] | None, Example(["staff"])] = None
    created_at: Annotated[datetime, Example(TIME)]
    expires_at: Annotated[datetime | None, Example(None)] = None
    revoked_at: Annotated[datetime | None, Example(None)] = None
    last_used_at: Annotated[
        datetime | None, Field(description="Accurate to the hour."), Example(TIME)
    ] = None
    limits: Annotated[LimitFields, Example({"photos_per_second": 5, "photos_per_day": 100_000})]

    @classmethod
    def of(cls, key: AccessKey) -> Self:
        """A key as an answer shows it."""
        return cls(
            key_id=key.key_id,
            name=key.name,
            scopes=sorted(key.scopes),
            collections=None if key.collections is None else sorted(key.collections),
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
            limits=LimitFields(**key.limits.members()),
        )


class KeyList(Answer):
    """All keys, including those that were revoked or have expired."""

    items: list[KeyInfo]


class KeyWithToken(Answer):
    """A new key. Its token is in no other answer."""

    key: KeyInfo
    token: Annotated[str, Example("lk_q7w2m9x4k6ab_" + "A" * 43)]


class LimitedKeys(Answer):
    """The keys whose limits were replaced."""

    limited: list[KeyInfo]


class RevokedKeys(Answer):
    """The keys that were revoked, which no process accepts any more."""

    revoked: list[KeyInfo]


@router.get("", responses=problems(), response_model=KeyList)
@needs(Scope.ADMIN)
async def list_keys(context: Context) -> Response:
    """List the access keys, the oldest first, without their tokens."""

    def answer() -> Response:  # written on the thread: 300 keys of 1,000 collections took 80 ms
        _, found = context.services.access_keys.all()
        items = [KeyInfo.of(one.key) for one in found.values()]
        return written_answer(KeyList(items=items, **context.envelope()))

    return await context.read(answer)


@router.post(
    "",
    status_code=201,
    responses=problems(ANY_BODY, ANY_WRITE, (AccessKeyExists, AccessPepperDiffers)),
)
@needs(Scope.ADMIN)
async def create_key(context: Context, response: Response, body: NewKeyFields) -> KeyWithToken:
    """Create an access key. The answer is the only one that has its token.

    The first key is created on the command line (`likeness keys create`), or with a token of an
    OpenID Connect issuer that has the scope `admin`.
    """
    new = NewKey(body.name, body.scopes, body.collections, body.expires_at, body.limits.limits())
    key, token = await context.write(context.services.access_keys.create, new)
    response.headers.update(NO_STORE)
    return KeyWithToken(key=KeyInfo.of(key), token=token, **context.envelope())


@router.post(
    "/{key}/rotate",
    status_code=201,
    responses=problems(ANY_BODY, ANY_WRITE, (AccessKeyNotFound, AccessPepperDiffers)),
)
@needs(Scope.ADMIN)
async def rotate_key(
    context: Context, response: Response, key: KeyInPath, body: RotationFields
) -> KeyWithToken:
    """Create a key with the name, scopes and limits of an existing one, to replace it.

    The old token stays usable for `overlap_hours`. If the old key has an expiry, the new key gets
    the same lifetime, counted from now.
    """
    overlap = timedelta(hours=body.overlap_hours)
    made, token = await context.write(context.services.access_keys.rotate, key, overlap)
    response.headers.update(NO_STORE)
    return KeyWithToken(key=KeyInfo.of(made), token=token, **context.envelope())


@router.put("/{key}/limits", responses=problems(ANY_BODY, ANY_WRITE, (AccessKeyNotFound,)))
@needs(Scope.ADMIN)
async def limit_key(context: Context, key: KeyInPath, body: LimitFields) -> LimitedKeys:
    """Replace the limits of all keys of a name, given by the name or by the id of one of them.

    A limit that is missing or null is removed. Every process applies the new limits within two
    seconds.
    """
    limited = await context.write(context.services.access_keys.limit, key, body.limits())
    return LimitedKeys(limited=[KeyInfo.of(one) for one in limited], **context.envelope())


@router.delete("/{key}", responses=problems(ANY_WRITE, (AccessKeyNotFound,)))
@needs(Scope.ADMIN)
async def revoke_key(context: Context, key: KeyInPath) -> RevokedKeys:
    """Revoke the key of an id, or all keys of a name.

    The answer comes when no process accepts them any more, after about two seconds.
    """
    revoked = await context.delete(context.services.access_keys.revoke, key)
    await asyncio.sleep(LEASE_S)
    return RevokedKeys(revoked=[KeyInfo.of(one) for one in revoked], **context.envelope())
