"""`/v1/verify` and `/v1/identify`: photos against the gallery."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from app.api.analysis import analyse_images
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
from app.api.responses import (
    AnswerHead,
    PhotoOutcome,
    answer_of_faces,
    face_members,
    image_info,
    json_answer,
)
from app.api.routes.faces import faces_of
from app.api.schemas.decisions import IdentifyAnswer, VerifyAnswer
from app.decision.calibrations import policy_of
from app.decision.gates import OPEN_GATE, QualityGate
from app.decision.pairs import PairRules
from app.decision.policy import FaceSelection, is_match, usable_face
from app.decision.refusals import Refusals
from app.decision.thresholds import (
    ONE_COMPARISON,
    ThresholdDecision,
    identification_threshold,
    verification_threshold,
)
from app.decision.verdicts import Verdict, decide
from app.errors import (
    InvalidRequest,
    LikenessError,
    MissingField,
    NoFace,
    PersonNotFound,
    RateOutOfReach,
)
from app.gallery.gallery import Candidate, Comparison
from app.index.port import GallerySize
from app.store.records import CollectionRecord
from app.types import AnalysedImage, Face, FloatArray

# In one answer: six candidates for each of 8,192 faces, the most that 32 photos give.
MAX_CANDIDATES = 50_000

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
    if fields.person_id is not None:
        # Before any network runs: an unknown person costs nothing.
        await head.services.scheduler.read(
            head.services.gallery.store.person, fields.collection, fields.person_id
        )
    record = await head.services.scheduler.read(
        head.services.gallery.store.collection, fields.collection
    )
    gate = policy_of(record).verify_gate
    outcomes = await _analyse_pair(head, [*call.images, *references], fields, gate)
    faces = [
        # The gate applies to the probe; the reference may be any picture.
        _one_face(outcome, fields.face_selection, i, gate if i == 0 else OPEN_GATE)
        for i, outcome in enumerate(outcomes)
    ]
    best = None
    comparator = head.services.gallery.comparator
    if references:
        similarity = comparator.score(_vector(faces[0][1]), _vector(faces[1][1]))
        against: dict[str, Any] = {
            "reference_face": face_members(faces[1][1], faces[1][0], 1, comparator)
        }
        claimed_person_size = ONE_COMPARISON
    else:
        best = await _against_person(head, fields, _vector(faces[0][1]))
        similarity = best.similarity
        against = {"person_id": best.face.person_id, "face_id": best.face.face_id}
        claimed_person_size = best.compared
    decision = await head.services.scheduler.search(
        _verification_threshold, head, fields, claimed_person_size
    )
    reached = is_match(similarity, decision.threshold)
    refusals, doubt = _refusals(head, decision, fields.collection), None
    refused = refusals is not None and refusals.refuses(faces[0][1], best or faces[1][1])
    if best is not None and reached and not refused:
        pairs = PairRules(head.services.gallery, record, decision.calibration)
        claim = Candidate(best.face, similarity, None)
        doubt = await head.services.scheduler.read(pairs.doubt, claim, _vector(faces[0][1]))
    return {
        **head.envelope(),
        **against,
        **threshold_members(decision),
        **fmr_members(decision, similarity),
        **verification_members(decision, similarity, doubt, reached=reached, refused=refused),
        "face": face_members(faces[0][1], faces[0][0], 0, comparator),
    }


def _refusals(head: AnswerHead, decision: ThresholdDecision, collection: str) -> Refusals | None:
    """None where nothing is promised: without a domain, or for a fixed threshold."""
    domain = None if decision.calibration is None else decision.calibration.domain
    if domain is None or decision.target is None:
        return None
    return Refusals(head.services.gallery, collection, domain.limits)


async def _analyse_pair(
    head: AnswerHead, photos: Sequence[bytes], fields: VerifyFields, gate: QualityGate
) -> list[PhotoOutcome]:
    """The probe, with its liveness where the call or the gate asks for it; then the reference."""
    live = fields.liveness or gate.min_liveness is not None
    if not live:
        return await analyse_images(head, photos, None)
    probe = await analyse_images(head, photos[:1], None, liveness=True)
    return [*probe, *(await analyse_images(head, photos[1:], None) if photos[1:] else ())]


async def _against_person(head: AnswerHead, fields: VerifyFields, probe: FloatArray) -> Comparison:
    assert fields.person_id is not None, "checked by the route"
    best = await head.services.scheduler.read(
        head.services.gallery.compare, fields.collection, fields.person_id, probe
    )
    if best is None:
        raise NoFace(f"The person '{fields.person_id}' has no face enrolled; enroll a photo first.")
    return best


def _verification_threshold(
    head: AnswerHead, fields: VerifyFields, claimed_person_size: GallerySize
) -> ThresholdDecision:
    services = head.services
    # Two photos are compared whatever the collection holds: of it they only need the policy.
    record = services.gallery.store.collection(fields.collection)
    requested = threshold_request(fields)
    # Only a target for searches needs to know how much there is to search.
    searched, likeness = claimed_person_size, None
    if requested.target_fpir is not None:
        searched = services.gallery.size(fields.collection)
        likeness = services.gallery.likeness(fields.collection)
    chain = services.calibrations.chain(record)
    return verification_threshold(
        requested, policy_of(record), chain, claimed_person_size, searched, likeness=likeness
    )


def _one_face(
    outcome: PhotoOutcome, selection: FaceSelection, index: int, gate: QualityGate
) -> tuple[AnalysedImage, Face]:
    name = (IMAGE, REFERENCE)[index]
    if isinstance(outcome, LikenessError):
        raise type(outcome)(f"'{name}': {outcome.detail}", outcome.extra)
    try:
        return outcome, usable_face(outcome, selection, gate)
    except LikenessError as error:
        raise type(error)(f"'{name}': {error.detail}", error.extra) from error


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
    record = await head.services.scheduler.read(head.services.gallery.require, fields.collection)
    live = fields.liveness or policy_of(record).identify_gate.min_liveness is not None
    outcomes = await analyse_images(head, call.images, fields.max_faces, liveness=live)
    found = faces_of(outcomes)
    if len(found) * fields.top_k > MAX_CANDIDATES:
        raise InvalidRequest(
            f"{len(found)} faces with top_k={fields.top_k} would be more than {MAX_CANDIDATES:,} "
            "candidates in one answer; send a smaller top_k or fewer photos."
        )
    # To give the n faces of a photo n different people, each needs to know its n nearest.
    rivals = max(len(one.faces) for one in outcomes if isinstance(one, AnalysedImage))
    wanted = max(fields.top_k, rivals) if fields.one_person_once else fields.top_k
    start = time.perf_counter()
    members = await head.services.scheduler.search(_decide, head, fields, record, found, wanted)
    head.add("search", (time.perf_counter() - start) * 1000)
    images = [image_info(index, outcome).model_dump() for index, outcome in enumerate(outcomes)]
    answer = {
        **head.envelope(),
        **members,
        "collection": fields.collection,
        "images": images,
    }
    return await answer_of_faces(request, len(found), partial(json_answer, answer))


def _decide(
    head: AnswerHead,
    fields: IdentifyFields,
    record: CollectionRecord,
    found: list[tuple[int, AnalysedImage, Face]],
    wanted: int,
) -> dict[str, Any]:
    """Search, find the threshold for what was searched, and decide each face by it."""
    services, policy = head.services, policy_of(record)
    dimension = services.pack.recogniser.dimension
    probes = np.array([_vector(face) for _, _, face in found], np.float32).reshape(-1, dimension)
    result = services.gallery.identify(fields.collection, probes, wanted, fields.filter)
    chain = services.calibrations.chain(record)
    decision = identification_threshold(
        threshold_request(fields), policy, chain, result.searched, likeness=result.likeness
    )
    verdicts = _verdicts(found, result.rows, decision, policy.identify_gate, fields)
    refusals = _refusals(head, decision, fields.collection)
    if refusals is not None:
        verdicts = refusals.applied(verdicts, [face for _, _, face in found])
    verdicts = PairRules(services.gallery, record, decision.calibration).applied(verdicts, probes)
    faces = [
        {
            **face_members(face, image, index, services.gallery.comparator),
            "status": verdict.status,
            "person_id": verdict.person.face.person_id if verdict.person else None,
            "reasons": verdict.reasons,
            **doubt_members(verdict.doubt, decision),
            "candidates": [
                candidate_info(one, decision).model_dump() for one in row[: fields.top_k]
            ],
        }
        for (index, image, face), row, verdict in zip(found, result.rows, verdicts, strict=True)
    ]
    return {
        **threshold_members(decision),
        **fpir_members(decision, result.searched),
        "faces": faces,
    }


def _verdicts(
    found: Sequence[tuple[int, AnalysedImage, Face]],
    rows: Sequence[Sequence[Candidate]],
    decision: ThresholdDecision,
    gate: QualityGate,
    fields: IdentifyFields,
) -> list[Verdict]:
    """In the order of the faces, each photo decided by itself."""
    verdicts: list[Verdict] = []
    for index in dict.fromkeys(index for index, _, _ in found):
        mine = [i for i, (image_index, _, _) in enumerate(found) if image_index == index]
        verdicts += decide(
            [found[i][2] for i in mine],
            [rows[i] for i in mine],
            decision.threshold,
            gate,
            one_person_once=fields.one_person_once,
        )
    return verdicts


def _vector(face: Face) -> FloatArray:
    assert face.embedding is not None, "the pipeline was asked to embed"
    return face.embedding
