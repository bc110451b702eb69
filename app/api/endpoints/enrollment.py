"""`/v1/enroll`: photos, or embeddings, into the gallery; once for each `Idempotency-Key`
(draft-ietf-httpapi-idempotency-key-header)."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Self

from fastapi import Header, Request, Response
from pydantic import AfterValidator, BaseModel, Field

from app.access.keys import Scope
from app.api.access import needs
from app.api.analysed_face import QualityInfo, rounded_measures
from app.api.context import CallContext, Context
from app.api.fields import (
    CallFields,
    CollectionName,
    Embeddings,
    EmbeddingSpace,
    EnrolledMetadata,
    PersonId,
    Selection,
)
from app.api.openapi import SAMPLE_BASE64, photo_body
from app.api.problems import ANY_WRITE, IN_SPACE, ONE_FACE, PHOTOS, problems
from app.api.requests import IMAGE, Call, Fields, read_call
from app.api.responses import Answer, Example, example_of, json_answer
from app.api.routers import Router
from app.decision.face_selection import FaceSelection
from app.errors import (
    ConsentMissing,
    EnrolledBefore,
    IdempotencyKeyReused,
    InvalidEmbedding,
    InvalidRequest,
    LikenessError,
    MissingField,
    NothingEnrolled,
    OtherFaceEnrolled,
)
from app.recognition.enroll import AnswerToKeep, EnrolledTemplate, Enrollment, EnrollRequest
from app.recognition.enroll import enroll as enroll_person
from app.services import Services
from app.store.identifiers import DEFAULT_COLLECTION, REQUEST_KEY_PATTERN, new_request_key
from app.store.records import RequestKey
from app.types import JsonObject, Quality

REPLAYED = "Idempotency-Replayed"

RequestKeyText = Annotated[
    str,
    AfterValidator(new_request_key),
    Field(json_schema_extra={"pattern": REQUEST_KEY_PATTERN}),
]
IdempotencyKey = Annotated[
    RequestKeyText | None,
    Header(
        alias="Idempotency-Key",
        description=(
            "A new name for each call, such as a UUID, 1 to 255 printable ASCII characters. A "
            "call that enrolled something is not executed again when it is sent again with the "
            "same key within 24 hours: it gets the first answer."
        ),
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]

REPLAYED_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            REPLAYED: {
                "description": "`true` if this is the stored answer of an earlier call with the "
                "same key.",
                "schema": {"type": "string", "const": "true"},
            }
        }
    }
}


async def answer_idempotently(
    context: CallContext,
    call: Call[Fields],
    collection: str,
    key: str | None,
    work: Callable[[RequestKey | None], Awaitable[JsonObject]],
) -> tuple[JsonObject, bool]:
    """Do the work of a call that writes to a collection, or find the answer that the call had
    before under the same key. Returns the answer, and whether it is an earlier one.

    The work gets the key under which its answer is kept. Raises IdempotencyKeyReused where the key
    belongs to another call.
    """
    if key is None:
        return await work(None), False
    request = await context.read(request_key, key, call)
    answered = context.store.idempotency.answered
    kept = await context.read(answered, collection, request)
    if kept is None:
        try:
            return await work(request), False
        except EnrolledBefore:  # the same call, sent twice at once: the other was first
            kept = await context.read(answered, collection, request)
            if kept is None:
                raise
    return kept, True


def request_key(key: str, call: Call[Fields]) -> RequestKey:
    """The key with a digest of all that decides what the call does: its fields and its photos,
    in whichever form they were sent."""
    fields = call.fields.model_dump(mode="json")
    if fields.get("embedding_space") is None:  # calls of versions without it keep their digest
        fields.pop("embedding_space", None)
    asked = {
        **fields,
        "image": [hashlib.sha256(photo).hexdigest() for photo in call.images],
    }
    return RequestKey(key, hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest())


router = Router(prefix="/v1", tags=["gallery"])


class EnrollFields(CallFields):
    person_id: PersonId
    collection: CollectionName = DEFAULT_COLLECTION
    metadata: EnrolledMetadata | None = None
    face_selection: Selection = FaceSelection.ONLY
    embeddings: Embeddings | None = None
    embedding_space: EmbeddingSpace | None = None


class EnrolledFace(BaseModel):
    index: Annotated[int, Example(0)]
    face_id: Annotated[str, Example("7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11")]
    duplicate: Annotated[
        bool,
        Field(
            description=(
                "The same photo or embedding is already enrolled for this person; nothing was "
                "added."
            )
        ),
        Example(False),
    ]
    quality: Annotated[dict[str, Any], Example(example_of(QualityInfo))]
    degradation: Annotated[
        float | None,
        Field(description="As in the answer of /v1/embed; null without a domain."),
        Example(-0.04),
    ] = None
    degraded: Annotated[
        list[str],
        Field(
            default_factory=list,
            description=(
                "The limits that the face exceeds (degraded, blurred, too_dark, "
                "face_too_small, covered). Comparisons with a face that exceeds the same limit "
                "are rejected or match less often: enroll a better photo."
            ),
        ),
        Example([]),
    ]

    @classmethod
    def of(cls, services: Services, index: int, one: EnrolledTemplate) -> Self:
        """The template that was made of the photo or embedding with that number."""
        face, domain = one.stored.face, services.calibrations.domain
        comparator, vector = services.gallery.comparator, one.template.embedding
        degradation, quality = comparator.degradation_of(vector), Quality.read(face.quality)
        marks = domain.marks(quality, degradation, comparator.covering_of(vector)) if domain else ()
        return cls(
            index=index,
            face_id=face.face_id,
            duplicate=one.stored.duplicate,
            quality=rounded_measures(face.quality),
            degradation=None if degradation is None else round(degradation, 4),
            degraded=list(marks),
        )


class RejectedImage(BaseModel):
    index: Annotated[int, Example(1)]
    reasons: Annotated[list[str], Example(["no_face"])]
    detail: Annotated[str, Example("No face was found in the photo.")]

    @classmethod
    def of(cls, index: int, error: LikenessError) -> Self:
        """Why the photo with that number makes no template."""
        reasons = error.extra.get("reasons", [error.code])
        return cls(index=index, reasons=reasons, detail=error.detail)


class Enrolled(BaseModel):
    collection: Annotated[str, Example("default")]
    person_id: Annotated[str, Example("obama")]
    enrolled: list[EnrolledFace]
    rejected: list[RejectedImage]

    @classmethod
    def of(cls, services: Services, collection: str, enrollment: Enrollment) -> Self:
        """The outcome of an enrollment that stored something."""
        stored = enrollment.stored
        return cls(
            collection=collection,
            person_id=next(iter(stored.values())).stored.face.person_id,
            enrolled=[EnrolledFace.of(services, index, one) for index, one in stored.items()],
            rejected=_rejected(enrollment),
        )


class EnrollAnswer(Enrolled, Answer):
    pass


@router.post(
    "/enroll",
    response_model=EnrollAnswer,
    responses={
        **problems(
            PHOTOS,
            ONE_FACE,
            IN_SPACE,
            ANY_WRITE,
            (
                NothingEnrolled,
                InvalidEmbedding,
                IdempotencyKeyReused,
                ConsentMissing,
                OtherFaceEnrolled,
            ),
        ),
        **REPLAYED_ANSWER,
    },
    openapi_extra=photo_body(
        EnrollFields,
        {"image": SAMPLE_BASE64, "person_id": "obama", "metadata": {"office": "president"}},
        required=(),
    ),
)
@needs(Scope.ENROLL)
async def enroll(
    request: Request, context: Context, idempotency_key: IdempotencyKey = None
) -> Response:
    """Store one template of a person for each photo, and create the person if there is none.

    Give photos in `image`, or `embeddings` of the collection's embedding space; name it in
    `embedding_space`, so that those of another space are refused. Each photo needs one usable
    face; photos without one are listed in `rejected` with reasons, and the others are enrolled.
    Everything in `enrolled` is on disk. A photo that is sent again is not stored twice, and a call
    that is sent again with the same `Idempotency-Key` gets the first answer again.
    """
    call = await read_call(request, EnrollFields, optional=(IMAGE,))
    fields = call.fields
    if bool(call.images) == bool(fields.embeddings):
        raise MissingField("The call needs photos in 'image' or vectors in 'embeddings', not both.")
    if call.images and fields.embedding_space is not None:
        raise InvalidRequest("'embedding_space' belongs to 'embeddings'. Leave it out with photos.")
    work = partial(_enroll, context, call)
    answer, replayed = await answer_idempotently(
        context, call, fields.collection, idempotency_key, work
    )
    # Not validated again: the answer was made here, or is one that was kept.
    response = json_answer(EnrollAnswer.model_construct(**answer, **context.envelope()))
    if replayed:
        response.headers[REPLAYED] = "true"
    return response


async def _enroll(
    context: CallContext, call: Call[EnrollFields], key: RequestKey | None
) -> JsonObject:
    """The answer; it is kept to be given again under the same key."""
    fields = call.fields

    def answer(enrollment: Enrollment) -> JsonObject:
        return enrolled(enrollment).model_dump()

    def enrolled(enrollment: Enrollment) -> Enrolled:
        return Enrolled.of(context.services, fields.collection, enrollment)

    enrollment = await enroll_person(
        context.services, call.images,
        EnrollRequest(
            fields.collection, fields.person_id, fields.metadata, fields.embeddings or (),
            fields.face_selection, fields.embedding_space,
        ),
        context.times, kept=None if key is None else AnswerToKeep(key, answer),
    )  # fmt: skip
    if not enrollment.stored:
        _refuse_all(enrollment)
    return vars(enrolled(enrollment))


def _rejected(enrollment: Enrollment) -> list[RejectedImage]:
    return [RejectedImage.of(index, error) for index, error in enrollment.rejected.items()]


def _refuse_all(enrollment: Enrollment) -> None:
    errors = list(enrollment.rejected.values())
    rejected = [one.model_dump() for one in _rejected(enrollment)]
    extra = {"enrolled": [], "rejected": rejected}
    if len({error.code for error in errors}) == 1:
        first = errors[0]
        raise type(first)(first.detail, {**first.extra, **extra})
    raise NothingEnrolled(
        "None of the photos could be enrolled; 'rejected' gives the reason for each.", extra
    )
