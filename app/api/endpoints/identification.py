"""`/v1/identify`: who are the faces of these photos?"""

from typing import Annotated, Any, Self

from fastapi import APIRouter, Request, Response
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
    ThresholdFields,
    fpir_members,
)
from app.api.fields import CollectionName, Filter, Liveness, MaxFaces
from app.api.openapi import photo_body
from app.api.problems import ANY_WRITE, IN_SPACE, PHOTOS, problems
from app.api.requests import read_call
from app.api.responses import Answer, Example, json_answer, with_example
from app.decision.policy import Status
from app.decision.thresholds import ThresholdDecision
from app.errors import NotCalibrated, RateOutOfReach
from app.index.comparator import Comparator
from app.recognition.identify import FaceIdentification, Identification, IdentifyRequest
from app.recognition.identify import identify as identify_faces
from app.store.identifiers import DEFAULT_COLLECTION

router = APIRouter(prefix="/v1", tags=["gallery"])

MAX_TOP_K = 100


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
                "If ambiguous: `margin_too_small`, or `nearer_to_other` if another of "
                "`between` is clearly more similar than the person whom the search found, for "
                "example one whom the filter excludes."
            ),
        ),
        Example([]),
    ]
    candidates: Annotated[
        list[CandidateInfo], Field(description="The nearest persons, matches or not, best first.")
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
        Field(description="Number of persons and faces that were searched, after the filter."),
    ]
    fpir: Annotated[
        float | None,
        Field(
            description="Share of searches for people who are not enrolled that find someone at "
            "this threshold; null beyond the end of the calibration, where only the interval is "
            "known."
        ),
        Example(0.01),
    ] = None
    fpir_interval: Annotated[
        tuple[float, float] | None,
        Field(description="Its 95 % confidence interval."),
        Example([0.0085, 0.0116]),
    ] = None
    fpir_extrapolated: Annotated[
        bool,
        Field(description="Whether it is extrapolated beyond the comparisons that were counted."),
        Example(False),
    ] = False
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
