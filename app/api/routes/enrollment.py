"""`/v1/enroll`: photos, or embeddings, into the gallery."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

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
    MissingField,
    NothingEnrolled,
)
from app.recognition.enroll import EnrolledTemplate, Enrollment, EnrollRequest, KeptAnswer
from app.recognition.enroll import enroll as enroll_person
from app.services import Services
from app.store.records import RequestKey
from app.types import JsonObject, Quality

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
    answer = partial(_answer, head.services, fields.collection)
    enrollment = await enroll_person(
        head.services, call.images,
        EnrollRequest(
            fields.collection, fields.person_id, fields.metadata, fields.embeddings or (),
            fields.face_selection,
        ),
        policy, head.times, kept=None if key is None else KeptAnswer(key, answer),
    )  # fmt: skip
    if not enrollment.stored:
        _refuse_all(enrollment)
    return answer(enrollment)


def _answer(services: Services, collection: str, enrollment: Enrollment) -> JsonObject:
    stored = enrollment.stored
    return {
        "collection": collection,
        "person_id": next(iter(stored.values())).stored.face.person_id,
        "enrolled": [_enrolled(services, index, one).model_dump() for index, one in stored.items()],
        "rejected": _rejected(enrollment),
    }


def _rejected(enrollment: Enrollment) -> list[dict[str, Any]]:
    return [
        RejectedImage(
            index=i, reasons=error.extra.get("reasons", [error.code]), detail=error.detail
        ).model_dump()
        for i, error in enrollment.refused.items()
    ]


def _refuse_all(enrollment: Enrollment) -> None:
    errors = list(enrollment.refused.values())
    extra = {"enrolled": [], "rejected": _rejected(enrollment)}
    if len({error.code for error in errors}) == 1:
        first = errors[0]
        raise type(first)(first.detail, {**first.extra, **extra})
    raise NothingEnrolled(
        "None of the photos could be enrolled; 'rejected' gives the reason for each.", extra
    )


def _enrolled(services: Services, index: int, one: EnrolledTemplate) -> EnrolledFace:
    face, domain = one.stored.face, services.calibrations.domain
    lean = services.gallery.comparator.lean(one.template.embedding)
    beyond = () if domain is None else domain.limits.beyond(Quality.read(face.quality), lean)
    return EnrolledFace(
        index=index,
        face_id=face.face_id,
        duplicate=one.stored.duplicate,
        quality=quality_members(face.quality),
        degradation=None if lean is None else round(lean, 4),
        degraded=list(beyond),
    )
