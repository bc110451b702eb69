"""`/v1/verify` and `/v1/identify`: photos against the gallery."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from app.api.analysis import analyse_images
from app.api.answers import (
    AnswerHead,
    Outcome,
    answer_of_faces,
    face_members,
    image_info,
    json_answer,
)
from app.api.calls import IMAGE, REFERENCE, read_call
from app.api.decisions import (
    ask_of,
    candidate_info,
    doubt_members,
    fmr_members,
    fpir_members,
    rule_members,
    verification_members,
)
from app.api.fields import IdentifyFields, VerifyFields
from app.api.openapi import photo_body
from app.api.problems import IN_SPACE, ONE_FACE, PHOTOS, problems
from app.api.routes.faces import faces_of
from app.api.schemas.decisions import IdentifyAnswer, VerifyAnswer
from app.decision.calibrations import policy_of
from app.decision.gates import OPEN_GATE, QualityGate
from app.decision.pairs import PairRules
from app.decision.policy import FaceSelection, is_match, usable_face
from app.decision.refusals import Refusals
from app.decision.rules import ONE_COMPARISON, Rule, identification_rule, verification_rule
from app.decision.verdicts import Verdict, judge
from app.errors import (
    InvalidRequest,
    LikenessError,
    MissingField,
    NoFace,
    PersonNotFound,
    RateOutOfReach,
)
from app.gallery.gallery import Candidate, Comparison
from app.gallery.ports import CollectionRecord, GallerySize
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
        # Who claims to be somebody is judged by the gate; the reference may be any picture.
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
        claimed = ONE_COMPARISON
    else:
        best = await _against_person(head, fields, _vector(faces[0][1]))
        similarity = best.similarity
        against = {"person_id": best.face.person_id, "face_id": best.face.face_id}
        claimed = best.compared
    rule = await head.services.scheduler.search(_verification_rule, head, fields, claimed)
    reached = is_match(similarity, rule.threshold)
    refusals, doubt = _refusals(head, rule, fields.collection), None
    refused = refusals is not None and refusals.refuses(faces[0][1], best or faces[1][1])
    if best is not None and reached and not refused:
        pairs = PairRules(head.services.gallery, record, rule.calibration)
        claim = Candidate(best.face, similarity, None)
        doubt = await head.services.scheduler.read(pairs.doubt, claim, _vector(faces[0][1]))
    return {
        **head.members(),
        **against,
        **rule_members(rule),
        **fmr_members(rule, similarity),
        **verification_members(rule, similarity, doubt, reached=reached, refused=refused),
        "face": face_members(faces[0][1], faces[0][0], 0, comparator),
    }


def _refusals(head: AnswerHead, rule: Rule, collection: str) -> Refusals | None:
    """None where nothing is promised: without a domain, or for a fixed threshold."""
    domain = None if rule.calibration is None else rule.calibration.domain
    if domain is None or rule.target is None:
        return None
    return Refusals(head.services.gallery, collection, domain.limits)


async def _analyse_pair(
    head: AnswerHead, photos: Sequence[bytes], fields: VerifyFields, gate: QualityGate
) -> list[Outcome]:
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


def _verification_rule(head: AnswerHead, fields: VerifyFields, claimed: GallerySize) -> Rule:
    services = head.services
    # Two photos are compared whatever the collection holds: of it they only need the policy.
    record = services.gallery.store.collection(fields.collection)
    ask = ask_of(fields)
    # Only a target for searches needs to know how much there is to search.
    searched, likeness = claimed, None
    if ask.target_fpir is not None:
        searched = services.gallery.size(fields.collection)
        likeness = services.gallery.likeness(fields.collection)
    grounds = services.calibrations.grounds(record)
    return verification_rule(ask, policy_of(record), grounds, claimed, searched, likeness=likeness)


def _one_face(
    outcome: Outcome, selection: FaceSelection, index: int, gate: QualityGate
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
        **head.members(),
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
    """Search, find the threshold for what was searched, and judge each face by it."""
    services, policy = head.services, policy_of(record)
    dimension = services.pack.recogniser.dimension
    probes = np.array([_vector(face) for _, _, face in found], np.float32).reshape(-1, dimension)
    result = services.gallery.identify(fields.collection, probes, wanted, fields.filter)
    grounds = services.calibrations.grounds(record)
    rule = identification_rule(
        ask_of(fields), policy, grounds, result.searched, likeness=result.likeness
    )
    verdicts = _verdicts(found, result.rows, rule, policy.identify_gate, fields)
    refusals = _refusals(head, rule, fields.collection)
    if refusals is not None:
        verdicts = refusals.applied(verdicts, [face for _, _, face in found])
    verdicts = PairRules(services.gallery, record, rule.calibration).applied(verdicts, probes)
    faces = [
        {
            **face_members(face, image, index, services.gallery.comparator),
            "status": verdict.status,
            "person_id": verdict.person.face.person_id if verdict.person else None,
            "reasons": verdict.reasons,
            **doubt_members(verdict.doubt, rule),
            "candidates": [candidate_info(one, rule).model_dump() for one in row[: fields.top_k]],
        }
        for (index, image, face), row, verdict in zip(found, result.rows, verdicts, strict=True)
    ]
    return {**rule_members(rule), **fpir_members(rule, result.searched), "faces": faces}


def _verdicts(
    found: Sequence[tuple[int, AnalysedImage, Face]],
    rows: Sequence[Sequence[Candidate]],
    rule: Rule,
    gate: QualityGate,
    fields: IdentifyFields,
) -> list[Verdict]:
    """In the order of the faces, each photo judged by itself."""
    verdicts: list[Verdict] = []
    for index in dict.fromkeys(index for index, _, _ in found):
        mine = [i for i, (image_index, _, _) in enumerate(found) if image_index == index]
        verdicts += judge(
            [found[i][2] for i in mine],
            [rows[i] for i in mine],
            rule.threshold,
            gate,
            one_person_once=fields.one_person_once,
        )
    return verdicts


def _vector(face: Face) -> FloatArray:
    assert face.embedding is not None, "the pipeline was asked to embed"
    return face.embedding
