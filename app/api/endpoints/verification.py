"""`/v1/verify`: is this the person, or are two photos of one person?"""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from app.access.keys import Scope
from app.api.access import needs
from app.api.analysed_face import FaceInfo
from app.api.context import Context
from app.api.decisions import (
    Decided,
    Doubtful,
    Fmr,
    FmrExtrapolated,
    FmrInterval,
    ThresholdFields,
    fmr_members,
)
from app.api.fields import CollectionName, KnownPersonId, Liveness, Selection
from app.api.openapi import photo_body
from app.api.problems import ANY_WRITE, IN_SPACE, ONE_FACE, PHOTOS, problems
from app.api.requests import IMAGE, REFERENCE, read_call
from app.api.responses import Answer, Example, json_answer
from app.decision.policy import FaceSelection, VerifyStatus
from app.decision.verdicts import OUTSIDE_CALIBRATION
from app.errors import (
    ConsentMissing,
    InvalidRequest,
    MissingField,
    NotCalibrated,
    PersonNotFound,
    RateOutOfReach,
)
from app.index.comparator import Comparator
from app.recognition.verify import SelectedFace, Verification, VerifyRequest
from app.recognition.verify import verify as verify_face
from app.store.identifiers import DEFAULT_COLLECTION

router = APIRouter(prefix="/v1", tags=["gallery"])


class VerifyFields(ThresholdFields):
    person_id: KnownPersonId | None = None
    collection: CollectionName = DEFAULT_COLLECTION
    face_selection: Selection = FaceSelection.LARGEST
    liveness: Liveness = False


class VerifyAnswer(Answer, Decided, Doubtful):
    is_match: Annotated[bool, Example(True)]
    status: Annotated[
        VerifyStatus,
        Field(
            description=(
                "`ambiguous`: the similarity reaches the threshold, but another person who is "
                "declared to be different is as similar or nearly so. `rejected`: both faces "
                "are blurred, dark or degraded, so that their similarity says nothing about "
                "identity. `is_match` is false in either case."
            )
        ),
        Example("match"),
    ]
    reasons: Annotated[
        list[str],
        Field(
            default_factory=list,
            description=(
                "If ambiguous: `margin_too_small`, or `nearer_to_other` if it is clearly the "
                "other person's face. If rejected: `outside_calibration`."
            ),
        ),
        Example([]),
    ]
    similarity: Annotated[float, Field(ge=-1, le=1), Example(0.77)]
    fmr: Annotated[Fmr, Example(None)] = None
    fmr_interval: Annotated[FmrInterval, Example([0.0, 1.1e-06])] = None
    fmr_extrapolated: Annotated[FmrExtrapolated, Example(True)] = False
    person_id: Annotated[str | None, Example("obama")] = None
    face_id: Annotated[str | None, Example("7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11")] = None
    face: FaceInfo
    reference_face: Annotated[FaceInfo | None, Example(None)] = None

    @classmethod
    def of(cls, found: Verification, comparator: Comparator, **envelope: Any) -> "VerifyAnswer":
        """The answer for the outcome of a comparison."""
        status, reasons = _status(found)
        person, reference = found.nearest, found.reference
        return cls(
            is_match=status is VerifyStatus.MATCH,
            status=status,
            reasons=reasons,
            similarity=found.similarity,
            **fmr_members(found.threshold, found.similarity),
            person_id=None if person is None else person.face.person_id,
            face_id=None if person is None else person.face.face_id,
            face=_face(0, found.probe, comparator),
            reference_face=None if reference is None else _face(1, reference, comparator),
            **Doubtful.doubt_members(found.doubt, found.threshold),
            **Decided.threshold_members(found.threshold),
            **envelope,
        )


def _status(found: Verification) -> tuple[VerifyStatus, list[str]]:
    """Whether it is a match; why it is none although the threshold is reached, or why it is not
    decided."""
    if found.refused:
        return VerifyStatus.REJECTED, [OUTSIDE_CALIBRATION]
    if found.doubt is not None:
        return VerifyStatus.AMBIGUOUS, [found.doubt.reason]
    return VerifyStatus.MATCH if found.reached else VerifyStatus.NO_MATCH, []


def _face(index: int, selected: SelectedFace, comparator: Comparator) -> FaceInfo:
    return FaceInfo.of((index, selected.image, selected.face), comparator)


@router.post(
    "/verify",
    response_model=VerifyAnswer,
    responses=problems(
        PHOTOS,
        ONE_FACE,
        IN_SPACE,
        ANY_WRITE,
        (PersonNotFound, ConsentMissing, RateOutOfReach, NotCalibrated),
    ),
    openapi_extra=photo_body(
        VerifyFields, {"person_id": "obama"}, photos=(IMAGE, REFERENCE), required=(IMAGE,)
    ),
)
@needs(Scope.IDENTIFY)
async def verify(request: Request, context: Context) -> Response:
    """Decide whether a face is that of an enrolled person, or the same as in a second photo.

    `image` is compared with `person_id`, or with the photo in `reference`.
    """
    call = await read_call(request, VerifyFields, (IMAGE, REFERENCE), optional=(REFERENCE,))
    fields, references = call.fields, call.photos[REFERENCE]
    if len(call.images) != 1 or len(references) > 1:
        raise InvalidRequest("Verification takes one photo in 'image' and at most one 'reference'.")
    if bool(references) == (fields.person_id is not None):
        raise MissingField("Give either 'person_id' or a second photo in 'reference', not both.")
    try:
        found = await verify_face(
            context.services, call.images[0], references[0] if references else None,
            VerifyRequest(
                fields.collection, fields.person_id, fields.threshold_request(),
                fields.face_selection, liveness=fields.liveness, names=(IMAGE, REFERENCE),
            ),
            context.times,
        )  # fmt: skip
    except PersonNotFound:
        context.access.count_misses(1)
        raise
    context.access.count_misses(0 if found.reached else 1)
    return json_answer(VerifyAnswer.of(found, context.gallery.comparator, **context.envelope()))
