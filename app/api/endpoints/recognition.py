"""`/v1/verify`: is this the person, or are two photos of one person? `/v1/identify`: who are the
faces of these photos?"""

from typing import Annotated, Any, Self

from fastapi import Request, Response
from pydantic import Field

from app.access.keys import Scope
from app.api.access import needs
from app.api.analysed_face import FaceInfo, ImageInfo
from app.api.context import Context
from app.api.decisions import (
    CandidateInfo,
    Decided,
    Doubtful,
    Extent,
    Fmr,
    FmrExtrapolated,
    FmrInterval,
    ThresholdFields,
    ThresholdFmr,
    extrapolation_of,
    fmr_members,
    fpir_members,
    threshold_fmr_members,
)
from app.api.fields import CollectionName, Filter, KnownPersonId, Liveness, MaxFaces, Selection
from app.api.openapi import photo_body
from app.api.problems import ANY_WRITE, IN_SPACE, ONE_FACE, PHOTOS, problems
from app.api.requests import IMAGE, REFERENCE, read_call
from app.api.responses import Answer, Example, json_answer, with_example
from app.api.routers import Router
from app.decision.face_selection import FaceSelection
from app.decision.thresholds import ThresholdDecision
from app.decision.verdicts import OUTSIDE_CALIBRATION, Status, VerifyStatus
from app.errors import (
    ConsentMissing,
    InvalidRequest,
    MissingField,
    NoFaceEnrolled,
    NotCalibrated,
    PersonNotFound,
    RateOutOfReach,
)
from app.index.comparator import Comparator
from app.recognition.identify import FaceIdentification, Identification, IdentifyRequest
from app.recognition.identify import identify as identify_faces
from app.recognition.verify import SelectedFace, Verification, VerifyRequest
from app.recognition.verify import verify as verify_face
from app.store.identifiers import DEFAULT_COLLECTION

router = Router(prefix="/v1", tags=["gallery"])
MAX_TOP_K = 100


class VerifyFields(ThresholdFields):
    person_id: KnownPersonId | None = None
    collection: CollectionName = DEFAULT_COLLECTION
    face_selection: Selection = FaceSelection.LARGEST
    liveness: Liveness = False


class VerifyAnswer(Answer, Decided, ThresholdFmr, Doubtful):
    is_match: Annotated[bool, Example(True)]
    status: Annotated[
        VerifyStatus,
        Field(
            description=(
                "`ambiguous`: the similarity reaches the threshold, but another person who is "
                "declared to be different is as similar or nearly so. `rejected`: both faces "
                "are too degraded (blurred, dark, small, …) for their similarity to say anything "
                "about identity. `is_match` is false in either case."
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
    faces_found: Annotated[
        int,
        Field(
            description="How many faces were found in `image`; `face` is the one that "
            "`face_selection` chose."
        ),
        Example(1),
    ]
    reference_face: Annotated[FaceInfo | None, Example(None)] = None
    reference_faces_found: Annotated[
        int | None,
        Field(description="How many faces were found in `reference`; null without it."),
        Example(None),
    ] = None

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
            **threshold_fmr_members(found.threshold, found.compared),
            person_id=None if person is None else person.face.person_id,
            face_id=None if person is None else person.face.face_id,
            face=_face(0, found.probe, comparator),
            faces_found=found.probe.image.faces_found,
            reference_face=None if reference is None else _face(1, reference, comparator),
            reference_faces_found=None if reference is None else reference.image.faces_found,
            **Doubtful.doubt_members(found.doubt, found.threshold),
            **Decided.threshold_members(found.threshold),
            **envelope,
        )


def _status(found: Verification) -> tuple[VerifyStatus, list[str]]:
    """Whether it is a match; why it is none although the threshold is reached, or why it is not
    decided."""
    if found.rejected:
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
        (PersonNotFound, ConsentMissing, NoFaceEnrolled, RateOutOfReach, NotCalibrated),
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

    def write(found: Verification) -> Response:
        comparator = context.gallery.comparator
        return json_answer(VerifyAnswer.of(found, comparator, **context.envelope()))

    try:
        found, answer = await verify_face(
            context.services, [*call.images, *references],
            VerifyRequest(
                fields.collection, fields.person_id, fields.threshold_request(),
                fields.face_selection, liveness=fields.liveness, names=(IMAGE, REFERENCE),
            ),
            context.times, write,
        )  # fmt: skip
    except PersonNotFound:
        context.access.count_misses(1)
        raise
    # Two photos that do not match say nothing about who is enrolled.
    context.access.count_misses(int(fields.person_id is not None and not found.reached))
    return answer


class IdentifyFields(ThresholdFields):
    collection: CollectionName = DEFAULT_COLLECTION
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="Candidates for each face.")] = 5
    max_faces: MaxFaces | None = None
    filter: Filter | None = None
    liveness: Liveness = False
    one_person_once: Annotated[
        bool,
        Field(
            description="Assign each person to at most one face of a photo: the best "
            "assignment overall."
        ),
    ] = False


class IdentifiedFace(FaceInfo, Doubtful):
    status: Annotated[Status, Example("identified")]
    person_id: Annotated[
        str | None, Field(description="The person, if identified."), Example("obama")
    ] = None
    reasons: Annotated[
        list[str],
        Field(
            default_factory=list,
            description=(
                "Why it was rejected: the limits of the collection's gate that it fails, or "
                "`outside_calibration` if this face and the nearest stored one both look so "
                "degraded (`degradation`) that their similarity says nothing about identity. "
                "If unknown with `one_person_once`: `assigned_to_other_face` if everybody who "
                "reaches the threshold is assigned to another face of the photo. "
                "If ambiguous: `margin_too_small`, or `nearer_to_other` if another of "
                "`between` is clearly more similar than the person whom the search found, for "
                "example one whom the filter excludes."
            ),
        ),
        Example([]),
    ]
    candidates: Annotated[
        list[CandidateInfo],
        Field(
            description="The nearest persons, matches or not, best first; with the policy "
            "`candidates: identified` only the one who is identified, and none if the answer is "
            "ambiguous."
        ),
    ]

    @classmethod
    def decided(
        cls, one: FaceIdentification, decision: ThresholdDecision, comparator: Comparator
    ) -> Self:
        """One face and what was decided."""
        verdict = one.verdict
        return cls.of(
            (one.index, one.image, one.face),
            comparator,
            status=verdict.status,
            person_id=verdict.person.face.person_id if verdict.person else None,
            reasons=verdict.reasons,
            candidates=[CandidateInfo.of(candidate, decision) for candidate in one.candidates],
            **Doubtful.doubt_members(verdict.doubt, decision),
        )


class IdentifyAnswer(Answer, Decided):
    model_config = with_example(threshold=0.398, target=0.01)
    collection: Annotated[str, Example("default")]
    searched: Annotated[
        Extent,
        Field(
            description="Number of persons and faces in the gallery that was searched, after the "
            "filter; `threshold` follows it. A person whose consent has ended is not a candidate, "
            "but counts until the deletion."
        ),
    ]
    fpir: Annotated[
        float | None,
        Field(
            description="Share of searches for strangers (people who are not enrolled) that find "
            "somebody at this threshold; null beyond the end of the calibration, where only the "
            "interval is known."
        ),
        Example(0.01),
    ] = None
    fpir_interval: Annotated[
        tuple[float, float] | None,
        Field(description="Its 95 % confidence interval."),
        Example([0.0085, 0.0116]),
    ] = None
    fpir_extrapolated: Annotated[bool, extrapolation_of("fpir"), Example(False)] = False
    images: list[ImageInfo]
    faces: list[IdentifiedFace]

    @classmethod
    def of(
        cls, found: Identification, collection: str, comparator: Comparator, **envelope: Any
    ) -> Self:
        """The answer for the outcome of a search."""
        decision = found.threshold
        return cls(
            collection=collection,
            searched=Extent.of(found.searched),
            **fpir_members(decision, found.searched),
            images=[ImageInfo.of(index, outcome) for index, outcome in enumerate(found.photos)],
            faces=[IdentifiedFace.decided(one, decision, comparator) for one in found.faces],
            **Decided.threshold_members(decision),
            **envelope,
        )


@router.post(
    "/identify",
    response_model=IdentifyAnswer,
    responses=problems(PHOTOS, IN_SPACE, ANY_WRITE, (RateOutOfReach, NotCalibrated)),
    openapi_extra=photo_body(IdentifyFields, {"top_k": 3, "target_fpir": 0.01}),
)
@needs(Scope.IDENTIFY)
async def identify(request: Request, context: Context) -> Response:
    """Search the collection for each face of the photos: identified, unknown or rejected, or
    ambiguous between persons who are declared to be different.

    A search stores nothing: no photo, no embedding, no template.
    """
    call = await read_call(request, IdentifyFields)
    fields = call.fields

    def write(found: Identification) -> Response:
        comparator = context.gallery.comparator
        return json_answer(
            IdentifyAnswer.of(found, fields.collection, comparator, **context.envelope())
        )

    found, answer = await identify_faces(
        context.services, call.images,
        IdentifyRequest(
            fields.collection, fields.threshold_request(), fields.top_k, fields.max_faces,
            fields.filter, one_person_once=fields.one_person_once, liveness=fields.liveness,
        ),
        context.times, write,
    )  # fmt: skip
    context.access.count_misses(sum(one.verdict.status is Status.UNKNOWN for one in found.faces))
    return answer
