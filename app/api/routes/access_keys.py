"""`/v1/keys`: access keys. The command line has the same, `likeness keys`."""

import asyncio
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from app.access.keys import NewKey
from app.access.registry import LEASE_S
from app.api.json_routes import JsonRoute
from app.api.problems import ANY_BODY, ANY_WRITE, problems
from app.api.responses import AnswerHead
from app.api.schemas.access_keys import (
    KeyList,
    KeyWithToken,
    LimitedKeys,
    LimitFields,
    NewKeyFields,
    RevokedKeys,
    RotationFields,
    key_info,
)
from app.errors import AccessKeyExists, AccessKeyNotFound, AccessPepperDiffers

router = APIRouter(prefix="/v1/keys", tags=["access"], route_class=JsonRoute)
Key = Annotated[str, Path(min_length=1, max_length=64, description="Id or name of a key.")]
NO_STORE = {"Cache-Control": "no-store"}  # the answer holds a token


@router.get("", response_model=KeyList, responses=problems())
async def list_keys(request: Request) -> Any:
    """List the access keys, the oldest first, without their tokens."""
    head = AnswerHead(request)
    _, found = await head.services.scheduler.read(head.services.access_keys.all)
    return {**head.envelope(), "items": [key_info(one.key) for one in found.values()]}


@router.post(
    "",
    response_model=KeyWithToken,
    status_code=201,
    responses=problems(ANY_BODY, ANY_WRITE, (AccessKeyExists, AccessPepperDiffers)),
)
async def create_key(request: Request, response: Response, body: NewKeyFields) -> Any:
    """Create an access key. The answer is the only one that has its token.

    The first key is created on the command line: `likeness keys create`.
    """
    head = AnswerHead(request)
    new = NewKey(body.name, body.scopes, body.collections, body.expires_at, body.limits.limits())
    key, token = await head.services.scheduler.write(head.services.access_keys.create, new)
    response.headers.update(NO_STORE)
    return {**head.envelope(), "key": key_info(key), "token": token}


@router.post(
    "/{key}/rotate",
    response_model=KeyWithToken,
    status_code=201,
    responses=problems(ANY_BODY, ANY_WRITE, (AccessKeyNotFound, AccessPepperDiffers)),
)
async def rotate_key(request: Request, response: Response, key: Key, body: RotationFields) -> Any:
    """Create a key like another one, whose token stays usable for some time.

    If the old key was to expire, the new one lasts as long from now.
    """
    head = AnswerHead(request)
    made, token = await head.services.scheduler.write(
        head.services.access_keys.rotate, key, timedelta(hours=body.overlap_hours)
    )
    response.headers.update(NO_STORE)
    return {**head.envelope(), "key": key_info(made), "token": token}


@router.put(
    "/{key}/limits",
    response_model=LimitedKeys,
    responses=problems(ANY_BODY, ANY_WRITE, (AccessKeyNotFound,)),
)
async def limit_key(request: Request, key: Key, body: LimitFields) -> Any:
    """Replace the limits of the key of an id, or of all keys of a name.

    A limit that is missing or null is taken away. Every process applies them within two seconds.
    """
    head = AnswerHead(request)
    limited = await head.services.scheduler.write(
        head.services.access_keys.limit, key, body.limits()
    )
    return {**head.envelope(), "limited": [key_info(one) for one in limited]}


@router.delete(
    "/{key}", response_model=RevokedKeys, responses=problems(ANY_WRITE, (AccessKeyNotFound,))
)
async def revoke_key(request: Request, key: Key) -> Any:
    """Revoke the key of an id, or all keys of a name.

    The answer comes when no process accepts them any more, after about two seconds.
    """
    head = AnswerHead(request)
    revoked = await head.services.scheduler.delete(head.services.access_keys.revoke, key)
    await asyncio.sleep(LEASE_S)
    return {**head.envelope(), "revoked": [key_info(one) for one in revoked]}
