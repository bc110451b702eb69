"""Who are the faces of these photos?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from app.decision.calibrations import policy_of
from app.decision.pairs import PairRules
from app.decision.policy import QualityGate
from app.decision.thresholds import ThresholdDecision, ThresholdRequest, identification_threshold
from app.decision.verdicts import Refusals, Verdict, decide
from app.errors import InvalidRequest
from app.gallery.candidates import Candidate
from app.index.port import GallerySize
from app.recognition.analysis import (
    FoundFace,
    PhotoOutcome,
    StageTimes,
    analyse_images,
    embedding_of,
    faces_of,
)
from app.services import Services
from app.store.records import CollectionRecord
from app.store.sql.audit_log import Search
from app.types import AnalysedImage, Face, JsonObject

T = TypeVar("T")

# In one answer: six candidates for each of 8,192 faces, the most that 32 photos give.
MAX_CANDIDATES = 50_000


@dataclass(frozen=True, slots=True)
class IdentifyRequest:
    """A search of one collection. `max_faces` of each photo, the largest first (None: as many as
    the service allows); `filter` limits the search to persons with these members of metadata."""

    collection: str
    threshold: ThresholdRequest = field(default_factory=ThresholdRequest)
    top_k: int = 5
    max_faces: int | None = None
    filter: JsonObject | None = None
    one_person_once: bool = False
    liveness: bool = False


@dataclass(frozen=True, slots=True)
class FaceIdentification:
    """One face of the photo with number `index`, what was decided, and the nearest persons."""

    index: int
    image: AnalysedImage
    face: Face
    verdict: Verdict
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Identification:
    """The outcome of each photo, the threshold that decided, how much was searched, and the faces
    in the order of the photos."""

    photos: Sequence[PhotoOutcome]
    threshold: ThresholdDecision
    searched: GallerySize
    faces: Sequence[FaceIdentification]


async def identify(
    services: Services,
    photos: Sequence[bytes],
    request: IdentifyRequest,
    times: StageTimes,
    make: Callable[[Identification], T],
) -> tuple[Identification, T]:
    """The identification, and what `make` returns for it on the thread that has searched.

    Search the collection for each face of the photos. No photo and no embedding is stored; where
    the policy says so, the day of a match and the decision in the audit log are.

    A photo that cannot be used has its error in `photos`. Raises the first such error if none can
    be used, CollectionNotFound, EmbeddingSpaceMismatch, RateOutOfReach, NotCalibrated, or
    InvalidRequest for more candidates than one answer can have.
    """
    record = await services.scheduler.read(services.gallery.require, request.collection)
    live = request.liveness or policy_of(record).identify_gate.min_liveness is not None
    outcomes = await analyse_images(services, times, photos, request.max_faces, liveness=live)
    found = faces_of(outcomes)
    if len(found) * request.top_k > MAX_CANDIDATES:
        raise InvalidRequest(
            f"{len(found)} faces with top_k={request.top_k} would be more than {MAX_CANDIDATES:,} "
            "candidates in one answer; send a smaller top_k or fewer photos."
        )
    began = time.perf_counter()

    def work() -> tuple[Identification, T]:
        answer = _search(services, request, record, outcomes, found)
        times.add({"search": (time.perf_counter() - began) * 1000})
        return answer, make(answer)

    answer, made = await services.scheduler.search(work)
    found_ids = [one.verdict.person.face.person_id for one in answer.faces if one.verdict.person]
    services.matches.note(record, found_ids)
    if policy_of(record).audit_searches:
        audit = services.gallery.store.audit
        searches = [_audited(one, answer.threshold) for one in answer.faces]
        await services.scheduler.write(audit.record_searches, record, "face.identified", searches)
    return answer, made


def _audited(face: FaceIdentification, threshold: ThresholdDecision) -> Search:
    """The id of the person found, and the details for the audit log."""
    person, details = face.verdict.person, {"status": face.verdict.status.value}
    if person is None:
        return None, details
    scores = {"similarity": round(person.similarity, 4), "threshold": round(threshold.threshold, 4)}
    return person.face.person_id, details | scores


def _search(
    services: Services,
    request: IdentifyRequest,
    record: CollectionRecord,
    outcomes: Sequence[PhotoOutcome],
    found: Sequence[FoundFace],
) -> Identification:
    """Search, find the threshold for what was searched, and decide each face by it."""
    policy, dimension = policy_of(record), services.pack.recogniser.dimension
    vectors = [embedding_of(face) for _, _, face in found]
    probes = np.array(vectors, np.float32).reshape(-1, dimension)
    # To assign n different persons to the n faces of a photo, each face needs its n nearest.
    rivals = max(len(one.faces) for one in outcomes if isinstance(one, AnalysedImage))
    wanted = max(request.top_k, rivals) if request.one_person_once else request.top_k
    chain = services.calibrations.chain(record)
    result = services.gallery.identify(
        request.collection, probes, wanted, request.filter, chain.score
    )
    threshold = identification_threshold(
        request.threshold, policy, chain, result.searched, likeness=result.likeness
    )
    verdicts = _verdicts(found, result.rows, threshold, policy.identify_gate, request)
    refusals = Refusals.of(services.gallery, request.collection, threshold)
    if refusals is not None:
        verdicts = refusals.applied(verdicts, [face for _, _, face in found])
    rules = PairRules(services.gallery, record, threshold.calibration, threshold.score)
    verdicts = rules.applied(verdicts, probes)
    faces = [
        FaceIdentification(index, image, face, verdict, row[: request.top_k])
        for (index, image, face), row, verdict in zip(found, result.rows, verdicts, strict=True)
    ]
    return Identification(outcomes, threshold, result.searched, faces)


def _verdicts(
    found: Sequence[FoundFace],
    rows: Sequence[Sequence[Candidate]],
    threshold: ThresholdDecision,
    gate: QualityGate,
    request: IdentifyRequest,
) -> list[Verdict]:
    """In the order of the faces, each photo decided by itself."""
    verdicts: list[Verdict] = []
    for index in dict.fromkeys(index for index, _, _ in found):
        mine = [i for i, (image_index, _, _) in enumerate(found) if image_index == index]
        verdicts += decide(
            [found[i][2] for i in mine],
            [rows[i] for i in mine],
            threshold.threshold,
            gate,
            one_person_once=request.one_person_once,
        )
    return verdicts
