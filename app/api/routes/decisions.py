"""`/v1/verify` and `/v1/identify`: photos against the gallery."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request

from app.api.access import access_of
from app.api.decisions import (
    candidate_info,
    doubt_members,
    fmr_members,
    fpir_members,
    threshold_members,
    threshold_request,
    verification_members,
)
from app.api.fields import IdentifyFields, VerifyFields
from app.api.openapi import photo_body
from app.api.problems import IN_SPACE, ONE_FACE, PHOTOS, problems
from app.api.requests import IMAGE, REFERENCE, read_call
from app.api.responses import AnswerHead, answer_of_faces, face_members, image_info, json_answer
from app.api.schemas.decisions import IdentifyAnswer, VerifyAnswer
from app.decision.policy import Status
from app.errors import InvalidRequest, MissingField, PersonNotFound, RateOutOfReach
from app.index.comparator import Comparator
from app.recognition.identify import Identification, IdentifyRequest
from app.recognition.identify import identify as identify_faces
from app.recognition.verify import Verification, VerifyRequest
from app.recognition.verify import verify as verify_face

router = APIRouter(prefix="/v1", tags=["gallery"])


@router.post(
    "/verify",
    response_model=VerifyAnswer,
    responses=problems(PHOTOS, ONE_FACE, IN_SPACE, (PersonNotFound, RateOutOfReach)),
    openapi_extra=photo_body(
        VerifyFields, {"person_id": "obama"}, photos=(IMAGE, REFERENCE), required=(IMAGE,)
    ),
)
async def verify(request: Request) -> Any:
    """Decide whether a face is that of an enrolled person, or the same as in a second photo.

    `image` is compared with `person_id`, or with the photo in `reference`.
    """
    head = AnswerHead(request)
    call = await read_call(request, VerifyFields, (IMAGE, REFERENCE), optional=(REFERENCE,))
    fields, references = call.fields, call.photos[REFERENCE]
    if len(call.images) != 1 or len(references) > 1:
        raise InvalidRequest("Verification takes one photo in 'image' and at most one 'reference'.")
    if bool(references) == (fields.person_id is not None):
        raise MissingField("Give either 'person_id' or a second photo in 'reference', not both.")
    try:
        found = await verify_face(
            head.services, call.images[0], references[0] if references else None,
            VerifyRequest(
                fields.collection, fields.person_id, threshold_request(fields),
                fields.face_selection, liveness=fields.liveness, names=(IMAGE, REFERENCE),
            ),
            head.times,
        )  # fmt: skip
    except PersonNotFound:
        access_of(request).count_misses(1)
        raise
    access_of(request).count_misses(0 if found.reached else 1)
    comparator = head.services.gallery.comparator
    return {
        **head.envelope(),
        **_compared_with(found, comparator),
        **threshold_members(found.threshold),
        **fmr_members(found.threshold, found.similarity),
        **verification_members(
            found.threshold,
            found.similarity,
            found.doubt,
            reached=found.reached,
            refused=found.refused,
        ),
        "face": face_members(found.probe.face, found.probe.image, 0, comparator),
    }


def _compared_with(found: Verification, comparator: Comparator) -> dict[str, Any]:
    """What the probe was compared with."""
    if found.reference is not None:
        reference = face_members(found.reference.face, found.reference.image, 1, comparator)
        return {"reference_face": reference}
    assert found.nearest is not None, "one of the two is given"
    return {"person_id": found.nearest.face.person_id, "face_id": found.nearest.face.face_id}


@router.post(
    "/identify",
    response_model=IdentifyAnswer,
    responses=problems(PHOTOS, IN_SPACE, (RateOutOfReach,)),
    openapi_extra=photo_body(IdentifyFields, {"top_k": 3, "target_fpir": 0.01}),
)
async def identify(request: Request) -> Any:
    """Search the collection for each face of the photos: identified, unknown or rejected, or
    ambiguous between persons who are declared to be different.

    A search stores nothing: no photo, no embedding, no template.
    """
    head = AnswerHead(request)
    call = await read_call(request, IdentifyFields)
    fields = call.fields
    found = await identify_faces(
        head.services, call.images,
        IdentifyRequest(
            fields.collection, threshold_request(fields), fields.top_k, fields.max_faces,
            fields.filter, one_person_once=fields.one_person_once, liveness=fields.liveness,
        ),
        head.times,
    )  # fmt: skip
    unknown = sum(one.verdict.status is Status.UNKNOWN for one in found.faces)
    access_of(request).count_misses(unknown)
    # Thousands of candidates: not on the event loop.
    faces = await head.services.scheduler.search(_faces, found, head.services.gallery.comparator)
    images = [image_info(index, outcome).model_dump() for index, outcome in enumerate(found.photos)]
    answer = {
        **head.envelope(),
        **threshold_members(found.threshold),
        **fpir_members(found.threshold, found.searched),
        "faces": faces,
        "collection": fields.collection,
        "images": images,
    }
    return await answer_of_faces(request, len(faces), partial(json_answer, answer))


def _faces(found: Identification, comparator: Comparator) -> list[dict[str, Any]]:
    """The members of each `IdentifiedFace`."""
    decision = found.threshold
    return [
        {
            **face_members(one.face, one.image, one.index, comparator),
            "status": one.verdict.status,
            "person_id": one.verdict.person.face.person_id if one.verdict.person else None,
            "reasons": one.verdict.reasons,
            **doubt_members(one.verdict.doubt, decision),
            "candidates": [
                candidate_info(candidate, decision).model_dump() for candidate in one.candidates
            ],
        }
        for one in found.faces
    ]
