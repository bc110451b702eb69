"""`/v1/enroll`: photos, or embeddings, into the gallery."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from app.api.analysis import each_photo, record
from app.api.fields import EnrollFields
from app.api.idempotency import REPLAYED_ANSWER, IdempotencyKey, answer_idempotently
from app.api.openapi import SAMPLE_BASE64, photo_body
from app.api.problems import ANY_WRITE, IN_SPACE, ONE_FACE, PHOTOS, problems
from app.api.requests import IMAGE, Call, read_call
from app.api.responses import AnswerHead, quality_members
from app.api.schemas.faces import EnrollAnswer, EnrolledFace, RejectedImage
from app.decision.calibrations import policy_of
from app.decision.thresholds import CollectionPolicy
from app.errors import (
    IdempotencyKeyReused,
    InvalidEmbedding,
    LikenessError,
    MissingField,
    NothingEnrolled,
)
from app.store.records import IdempotencyRequest, NewTemplate, RequestKey, StoredTemplate
from app.types import AnalysedImage, CooperativeTask, JsonObject, Quality

router = APIRouter(prefix="/v1", tags=["gallery"])


@router.post(
    "/enroll",
    response_model=EnrollAnswer,
    responses={
        **problems(
            PHOTOS,
            ONE_FACE,
            IN_SPACE,
            ANY_WRITE,
            (NothingEnrolled, InvalidEmbedding, IdempotencyKeyReused),
        ),
        **REPLAYED_ANSWER,
    },
    openapi_extra=photo_body(
        EnrollFields,
        {"image": SAMPLE_BASE64, "person_id": "obama", "metadata": {"office": "president"}},
        required=(),
    ),
)
async def enroll(
    request: Request, response: Response, idempotency_key: IdempotencyKey = None
) -> Any:
    """Store one template of a person for each photo, and create the person if there is none.

    Give photos in `image`, or `embeddings` of the same embedding space. Each photo needs one usable
    face; photos without one are listed in `rejected` with reasons, and the others are enrolled.
    Everything in `enrolled` is on disk. A photo that is sent again is not stored twice, and a call
    that is sent again with the same `Idempotency-Key` gets the first answer again.
    """
    head = AnswerHead(request)
    call = await read_call(request, EnrollFields, optional=(IMAGE,))
    fields = call.fields
    record = await head.services.scheduler.read(head.services.gallery.require, fields.collection)
    if bool(call.images) == bool(fields.embeddings):
        raise MissingField("The call needs photos in 'image' or vectors in 'embeddings', not both.")
    work = partial(_enroll, head, call, policy_of(record))
    answer = await answer_idempotently(head, response, call, idempotency_key, work)
    return {**head.envelope(), **answer}


async def _enroll(
    head: AnswerHead, call: Call[EnrollFields], policy: CollectionPolicy, key: RequestKey | None
) -> JsonObject:
    fields = call.fields
    outcomes = await _new_templates(head, call.images, fields, policy)
    templates = {i: made for i, made in enumerate(outcomes) if isinstance(made, NewTemplate)}
    rejected = [
        RejectedImage(
            index=i, reasons=error.extra.get("reasons", [error.code]), detail=error.detail
        )
        for i, error in enumerate(outcomes)
        if isinstance(error, LikenessError)
    ]
    if not templates:
        _refuse_all([error for error in outcomes if isinstance(error, LikenessError)], rejected)

    def answer(stored: Sequence[StoredTemplate]) -> JsonObject:
        enrolled = [
            _enrolled(head, i, template, one)
            for (i, template), one in zip(templates.items(), stored, strict=True)
        ]
        return {
            "collection": fields.collection,
            "person_id": stored[0].face.person_id,
            "enrolled": [item.model_dump() for item in enrolled],
            "rejected": [item.model_dump() for item in rejected],
        }

    kept = IdempotencyRequest(key.key, key.request_digest, answer) if key else None
    return answer(await _store(head, fields, list(templates.values()), kept))


async def _new_templates(
    head: AnswerHead, images: Sequence[bytes], fields: EnrollFields, policy: CollectionPolicy
) -> Sequence[NewTemplate | LikenessError]:
    services = head.services
    if fields.embeddings:
        given = fields.embeddings
        return await services.scheduler.search(
            lambda: [services.template_from_embedding(values) for values in given]
        )

    def work(data: bytes) -> CooperativeTask[tuple[AnalysedImage, NewTemplate]]:
        return services.template_steps(data, fields.face_selection, policy)

    outcomes = await each_photo(head, images, work)
    templates: list[NewTemplate | LikenessError] = []
    for outcome in outcomes:
        if isinstance(outcome, LikenessError):
            templates.append(outcome)
        else:
            record(head, outcome[0])
            templates.append(outcome[1])
    return templates


async def _store(
    head: AnswerHead,
    fields: EnrollFields,
    templates: list[NewTemplate],
    kept: IdempotencyRequest | None,
) -> list[StoredTemplate]:
    start = time.perf_counter()
    gallery, scheduler = head.services.gallery, head.services.scheduler
    stored = await scheduler.write(
        partial(gallery.put, idempotency=kept),
        fields.collection, fields.person_id, fields.metadata, templates,
    )  # fmt: skip
    await scheduler.search(gallery.follow, fields.collection)
    head.add("store", (time.perf_counter() - start) * 1000)
    return stored


def _refuse_all(errors: list[LikenessError], rejected: list[RejectedImage]) -> None:
    extra = {"enrolled": [], "rejected": [item.model_dump() for item in rejected]}
    if len({error.code for error in errors}) == 1:
        first = errors[0]
        raise type(first)(first.detail, {**first.extra, **extra})
    raise NothingEnrolled(
        "None of the photos could be enrolled; 'rejected' gives the reason for each.", extra
    )


def _enrolled(
    head: AnswerHead, index: int, template: NewTemplate, stored: StoredTemplate
) -> EnrolledFace:
    services, quality = head.services, Quality.read(stored.face.quality)
    lean, domain = (
        services.gallery.comparator.lean(template.embedding),
        services.calibrations.domain,
    )
    return EnrolledFace(
        index=index,
        face_id=stored.face.face_id,
        duplicate=stored.duplicate,
        quality=quality_members(stored.face.quality),
        degradation=None if lean is None else round(lean, 4),
        degraded=[] if domain is None else list(domain.limits.beyond(quality, lean)),
    )
