"""What `/v1/keys` takes and answers."""

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from app.access.keys import WHOLE_SERVICE, AccessKey, Scope
from app.access.limits import MAX_COUNT, MAX_RATE, KeyLimits
from app.api.fields import CollectionName
from app.api.schemas.common import TIME, Answer, example

KeyName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Name of the key's user.")
]
Scopes = Annotated[list[Scope], Field(min_length=1, description="What the key allows.")]
_KEY: dict[str, Any] = {
    "key_id": "q7w2m9x4k6ab",
    "name": "entrance-1",
    "scopes": ["identify"],
    "collections": ["staff"],
    "created_at": TIME,
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": TIME,
    "limits": {"photos_per_second": 5, "photos_per_day": 100_000},
}


def _in_future(value: datetime) -> datetime:
    try:
        utc = value.astimezone(UTC)
    except OverflowError:
        raise ValueError("must lie in the years 1 to 9999 of UTC") from None
    if utc <= datetime.now(UTC):
        raise ValueError("must lie in the future")
    return utc


class LimitFields(BaseModel):
    """The limits of a key; null: no limit. The keys of one name share them."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"photos_per_second": 5, "photos_per_day": 100_000}]},
    )
    requests_per_second: Annotated[
        float | None,
        Field(gt=0, le=MAX_RATE, allow_inf_nan=False, description="In the mean."),
    ] = None
    photos_per_second: Annotated[
        float | None,
        Field(gt=0, le=MAX_RATE, allow_inf_nan=False, description="In the mean."),
    ] = None
    concurrent_requests: Annotated[
        int | None, Field(ge=1, le=MAX_COUNT, description="Requests at a time.")
    ] = None
    photos_per_day: Annotated[
        int | None, Field(ge=1, le=MAX_COUNT, description="In a day of UTC.")
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
        Field(min_length=1, description="The only collections it is for; null: all."),
    ] = None
    expires_at: Annotated[AwareDatetime, AfterValidator(_in_future)] | None = None
    limits: Annotated[
        LimitFields, Field(default_factory=LimitFields, description="How much it may be used.")
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
        extra="forbid", json_schema_extra={"examples": [{"overlap_hours": 24}]}
    )
    overlap_hours: Annotated[float, Field(ge=0, le=24 * 90, allow_inf_nan=False)] = 24.0


class KeyInfo(BaseModel):
    """A key without its token, which is shown once and stored nowhere."""

    model_config = ConfigDict(json_schema_extra={"examples": [_KEY]})
    key_id: str
    name: str
    scopes: list[Scope]
    collections: list[str] | None = None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: Annotated[datetime | None, Field(description="To the hour.")] = None
    limits: LimitFields


class KeyList(Answer):
    """Every key, also those that were revoked or have expired."""

    model_config = example(items=[_KEY])
    items: list[KeyInfo]


class KeyWithToken(Answer):
    """A new key. Its token is in no other answer."""

    model_config = example(key=_KEY, token="lk_q7w2m9x4k6ab_" + "A" * 43)
    key: KeyInfo
    token: str


class LimitedKeys(Answer):
    """The keys whose limits were replaced."""

    model_config = example(limited=[_KEY])
    limited: list[KeyInfo]


class RevokedKeys(Answer):
    """The keys that were revoked, which no process accepts any more."""

    model_config = example(revoked=[_KEY])
    revoked: list[KeyInfo]


def key_info(key: AccessKey) -> KeyInfo:
    """A key in wire form."""
    return KeyInfo(
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
