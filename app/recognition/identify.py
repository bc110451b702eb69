"""Who are the faces of these photos?"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from app.decision.gates import QualityGate
from app.decision.pairs import PairRules
from app.decision.policy import CollectionPolicy, ShownCandidates, policy_of
from app.decision.thresholds import (
    CalibrationChain,
    ThresholdDecision,
    ThresholdRequest,
    identification_threshold,
    refuse_lower,
)
from app.decision.verdicts import Rejections, Verdict, decide
from app.errors import InvalidRequest
from app.gallery.candidates import Candidate, SearchQuery, SearchResult
from app.index.port import GallerySize
from app.recognition.analysis import (
    FoundFace,
    PhotoOutcome,
    StageTimes,
    analyse_images,
    embedding_of,
    faces_of,
    fits_one_thread,
    image_task,
    infer_photo,
)
from app.services import Services
from app.store.records import CollectionRecord
from app.store.sql.audit_log import AuditStore, Search
from app.store.sql.lookups import bound_to
from app.types import AnalysedImage, CooperativeTask, Face, FloatArray, JsonObject

T = TypeVar("T")

# Candidates in one answer. With the default limits, 32 photos have up to 8,192 faces; `top_k` may
# then be 6.
MAX_CANDIDATES = 50_000
# Candidates that are read for `one_person_once`: for each face as many as its photo has faces.
MAX_RIVALS = 4 * MAX_CANDIDATES


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

    def needs_liveness(self, record: CollectionRecord) -> bool:
        """Whether the request or the collection's gate asks whether faces are live."""
        return self.liveness or policy_of(record).identify_gate.min_liveness is not None


@dataclass(frozen=True, slots=True)
class FaceIdentification:
    """One face of the photo with number `index`, what was decided, and the nearest persons, or
    only the one who was found, if the policy shows no others."""

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
    InvalidRequest for more candidates than one answer can have, and for a threshold below the
    policy's if that shows only who is identified.
    """
    gallery, scheduler = services.gallery, services.scheduler
    call = _Call(services, request, times, make)
    done: tuple[Identification, T] | None
    if fits_one_thread(services, photos):
        probes, done = await infer_photo(services, photos[0], call.on_one_thread(photos[0]))
        if done is None:
            done = await scheduler.search(call.search, probes, time.perf_counter())
        record = probes.record
    else:
        record = await scheduler.read(gallery.require, request.collection)
        outcomes = await analyse_images(
            services, times, photos, request.max_faces, liveness=request.needs_liveness(record)
        )
        done = await scheduler.search(call.search_all, record, outcomes)
    answer = done[0]
    matched = [one.verdict.person.face for one in answer.faces if one.verdict.person]
    services.matches.note(record, matched)
    if policy_of(record).audit_searches:
        await scheduler.write(_audit, gallery.store.audit, record, answer)
    return done


@dataclass(frozen=True, slots=True)
class _Probes:
    """The faces that are searched for, with the collection as it was before they were found."""

    record: CollectionRecord
    outcomes: Sequence[PhotoOutcome]
    faces: Sequence[FoundFace]
    vectors: FloatArray


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    """The parts of one identification, each of which is done on some thread."""

    services: Services
    request: IdentifyRequest
    times: StageTimes
    make: Callable[[Identification], T]

    def on_one_thread(
        self, photo: bytes
    ) -> CooperativeTask[tuple[_Probes, tuple[Identification, T] | None]]:
        """All of it for one photo, in steps; None instead of the answer if the search has to be
        done on another thread, because it might take longer than a photo."""
        services, request = self.services, self.request
        record = services.gallery.require(request.collection)
        image = yield from image_task(
            services, self.times, photo, request.max_faces,
            liveness=request.needs_liveness(record),
        )  # fmt: skip
        probes = self.probes(record, [image])
        if request.filter is not None:
            return probes, None
        began, query = time.perf_counter(), self._query(probes)
        with bound_to(record):
            result = services.gallery.identify_at_once(record, query)
            return probes, None if result is None else self._answer(probes, result, began)

    def probes(self, record: CollectionRecord, outcomes: Sequence[PhotoOutcome]) -> _Probes:
        """The faces of analysed photos. Raises InvalidRequest for too many."""
        found, top_k = faces_of(outcomes), self.request.top_k
        if len(found) * top_k > MAX_CANDIDATES:
            raise InvalidRequest(
                f"{len(found)} faces with top_k={top_k} would be more than {MAX_CANDIDATES:,} "
                "candidates in one answer; send a smaller top_k or fewer photos."
            )
        most = _most_faces(outcomes)
        if self.request.one_person_once and len(found) * most > MAX_RIVALS:
            raise InvalidRequest(
                f"one_person_once compares each of {len(found)} faces with {most} persons, which "
                f"is more than {MAX_RIVALS:,} comparisons; send fewer photos, or a smaller "
                "max_faces."
            )
        vectors = [embedding_of(face) for _, _, face in found]
        dimension = self.services.pack.recogniser.dimension
        probes = np.array(vectors, np.float32).reshape(-1, dimension)
        return _Probes(record, outcomes, found, probes)

    def search_all(
        self, record: CollectionRecord, outcomes: Sequence[PhotoOutcome]
    ) -> tuple[Identification, T]:
        """The same for the faces of several photos."""
        began = time.perf_counter()
        return self.search(self.probes(record, outcomes), began)

    def search(self, probes: _Probes, began: float) -> tuple[Identification, T]:
        """The answer, and what `make` makes of it; the search began at that time. Raises
        CollectionNotFound if the collection was deleted meanwhile: another one of its name has
        another policy."""
        request, query = self.request, self._query(probes)
        with bound_to(probes.record):
            result = self.services.gallery.identify(
                request.collection, query.probes, query.top_k, request.filter, query.score
            )
            return self._answer(probes, result, began)

    def _query(self, probes: _Probes) -> SearchQuery:
        request = self.request
        # To assign n different persons to the n faces of a photo, each face needs its n nearest.
        wanted = request.top_k
        if request.one_person_once:
            wanted = max(wanted, _most_faces(probes.outcomes))
        return SearchQuery(probes.vectors, wanted, self._chain(probes).score)

    def _chain(self, probes: _Probes) -> CalibrationChain:
        return self.services.calibrations.chain(probes.record)

    def _answer(
        self, probes: _Probes, result: SearchResult, began: float
    ) -> tuple[Identification, T]:
        """Find the threshold for what was searched, and decide each face by it."""
        services, request, record, found = (
            self.services, self.request, probes.record, probes.faces,
        )  # fmt: skip
        policy = policy_of(record)
        threshold = self._threshold(policy, probes, result)
        verdicts = _verdicts(found, result.rows, threshold, policy.identify_gate, request)
        rejections = Rejections.of(services.gallery, request.collection, threshold)
        if rejections is not None:
            verdicts = rejections.applied(verdicts, [face for _, _, face in found])
        rules = PairRules(services.gallery, record, threshold.calibration, threshold.score)
        verdicts = rules.applied(verdicts, probes.vectors)
        faces = [
            FaceIdentification(index, image, face, verdict, _shown(row, verdict, policy, request))
            for (index, image, face), row, verdict in zip(found, result.rows, verdicts, strict=True)
        ]
        answer = Identification(probes.outcomes, threshold, result.searched, faces)
        self.times.add({"search": (time.perf_counter() - began) * 1000})
        return answer, self.make(answer)

    def _threshold(
        self, policy: CollectionPolicy, probes: _Probes, result: SearchResult
    ) -> ThresholdDecision:
        """Raises InvalidRequest where the policy shows only who is identified, and the call's
        threshold is below the policy's: everybody is identified at a threshold of -1."""
        search = (policy, self._chain(probes), result.searched)
        found = identification_threshold(self.request.threshold, *search, likeness=result.likeness)
        named = self.request.threshold != ThresholdRequest()
        if policy.candidates is ShownCandidates.IDENTIFIED and named:
            own = identification_threshold(ThresholdRequest(), *search, likeness=result.likeness)
            refuse_lower(found, own, self.request.collection)
        return found


def _shown(
    row: Sequence[Candidate], verdict: Verdict, policy: CollectionPolicy, request: IdentifyRequest
) -> Sequence[Candidate]:
    """The candidates of one face that the answer has."""
    if policy.candidates is ShownCandidates.IDENTIFIED:
        return [verdict.person] if verdict.person is not None else []
    return row[: request.top_k]


def _most_faces(outcomes: Sequence[PhotoOutcome]) -> int:
    """The number of faces of the photo that has most."""
    return max((len(one.faces) for one in outcomes if isinstance(one, AnalysedImage)), default=0)


def _audit(audit: AuditStore, record: CollectionRecord, answer: Identification) -> None:
    """Record the decision on each face in the audit log."""
    searches = [_audited(one, answer.threshold) for one in answer.faces]
    audit.record_searches(record, "face.identified", searches)


def _audited(face: FaceIdentification, threshold: ThresholdDecision) -> Search:
    """The number of the person found, and the details for the audit log."""
    person, details = face.verdict.person, {"status": face.verdict.status.value}
    if person is None:
        return None, details
    scores = {"similarity": round(person.similarity, 4), "threshold": round(threshold.threshold, 4)}
    return person.face.person_key, details | scores


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
