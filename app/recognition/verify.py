"""Is this the person, or are two photos of one person?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from app.decision.face_selection import FaceSelection, selector_of, usable_face
from app.decision.gates import OPEN_GATE, QualityGate
from app.decision.pairs import PairRules
from app.decision.policy import CollectionPolicy, ShownCandidates, policy_of
from app.decision.thresholds import (
    ONE_COMPARISON,
    CalibrationChain,
    ThresholdDecision,
    ThresholdRequest,
    refuse_lower,
    verification_threshold,
)
from app.decision.verdicts import Doubt, Rejections, is_match
from app.errors import FaceError, ImageError, LikenessError, NoFaceEnrolled
from app.gallery.candidates import Candidate, Comparison
from app.index.person_scores import PersonScore
from app.index.port import GallerySize
from app.recognition.analysis import (
    PhotoOutcome,
    StageTimes,
    count_image,
    each_photo,
    embedding_of,
    fits_one_thread,
    image_task,
    infer_photo,
    side_by_side,
)
from app.services import Services
from app.store.records import CollectionRecord, PersonRecord
from app.store.sql.audit_log import Search
from app.store.sql.consents import needs_consent, require_consent
from app.store.sql.lookups import bound_to
from app.store.store import Store
from app.types import AnalysedImage, CooperativeTask, Face, FloatArray

T = TypeVar("T")

# A claimed person with more templates is compared on a thread of the database, because reading so
# many could take longer than a photo. The number is an estimate.
MOST_TEMPLATES_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """A comparison with the person `person_id` of a collection; without one, with a second photo.
    `names` are the two photos' names in errors."""

    collection: str
    person_id: str | None = None
    threshold: ThresholdRequest = field(default_factory=ThresholdRequest)
    face_selection: FaceSelection = FaceSelection.ONLY
    liveness: bool = False
    names: tuple[str, str] = ("image", "reference")

    def needs_liveness(self, record: CollectionRecord) -> bool:
        """Whether the request or the collection's gate asks whether the probe's face is live."""
        return self.liveness or policy_of(record).verify_gate.min_liveness is not None

    @property
    def needs_index(self) -> bool:
        """Whether the threshold depends on how much there is to search."""
        return self.threshold.target_fpir is not None


@dataclass(frozen=True, slots=True)
class SelectedFace:
    """The face of a photo that is compared."""

    image: AnalysedImage
    face: Face


@dataclass(frozen=True, slots=True)
class Verification:
    """The probe and what it was compared with: the nearest face of the claimed person, or the
    reference. `compared`: the person's templates, or one photo. `reached`: whether the similarity
    reaches the threshold. `doubt`: why the claim is ambiguous although it does. `rejected`: whether
    both faces are outside the calibrated domain."""

    probe: SelectedFace
    nearest: Comparison | None
    reference: SelectedFace | None
    compared: GallerySize
    similarity: float
    threshold: ThresholdDecision
    reached: bool
    doubt: Doubt | None
    rejected: bool

    @property
    def accepted(self) -> bool:
        """Whether the decision is a match."""
        return self.reached and not self.rejected and self.doubt is None


async def verify(
    services: Services,
    photos: Sequence[bytes],
    request: VerifyRequest,
    times: StageTimes,
    make: Callable[[Verification], T],
) -> tuple[Verification, T]:
    """Compare the probe, the first photo, with the claimed person, or with the second photo where
    no person is named. The outcome, and what `make` returns for it on the thread that has compared.

    Raises CollectionNotFound, PersonNotFound, ConsentMissing for a person whose consent has ended,
    EmbeddingSpaceMismatch, NoFaceEnrolled for a person without faces, the ImageError and FaceError
    families, RateOutOfReach, NotCalibrated, and InvalidRequest for a threshold below the policy's
    if that shows only who is identified.
    """
    call, scheduler = _Call(services, request, times, make), services.scheduler
    done: tuple[Verification, T] | None = None
    if fits_one_thread(services, photos):
        claim, faces, done = await infer_photo(services, photos[0], call.on_one_thread(photos[0]))
    else:
        claim = await scheduler.read(call.claim)
        outcomes = await call.analyse(claim, photos)
        faces = call.select(claim, outcomes)
    if done is None:
        run = scheduler.search if request.needs_index else scheduler.read
        done = await run(call.decide, claim, faces)
    found, record = done[0], claim.record
    if found.nearest is not None and found.accepted:
        services.matches.note(record, [found.nearest.face])
    if policy_of(record).audit_searches:
        audit = services.gallery.store.audit
        await scheduler.write(audit.record_searches, record, "face.verified", [_audited(found)])
    return done


@dataclass(frozen=True, slots=True)
class _Claim:
    """The collection, and how many templates the claimed person has (0 where none is), as they were
    before a photo was analysed."""

    record: CollectionRecord
    templates: int


@dataclass(frozen=True, slots=True)
class _Call(Generic[T]):
    """The parts of one verification, each of which is done on some thread."""

    services: Services
    request: VerifyRequest
    times: StageTimes
    make: Callable[[Verification], T]

    def on_one_thread(
        self, photo: bytes
    ) -> CooperativeTask[tuple[_Claim, list[SelectedFace], tuple[Verification, T] | None]]:
        """All of it for one photo and a person, in steps; None instead of the answer if the
        comparison has to be done on another thread, because it might take longer than a photo."""
        claim = self.claim()
        gate, name = policy_of(claim.record).verify_gate, self.request.names[0]
        try:
            image = yield from image_task(
                self.services, self.times, photo, None,
                liveness=self.request.needs_liveness(claim.record),
                selector=selector_of(self.request.face_selection),
            )  # fmt: skip
        except (ImageError, FaceError) as error:
            raise _named(error, name) from error
        faces = [_select(image, self.request, name, gate)]
        at_once = claim.templates <= MOST_TEMPLATES_AT_ONCE and not self.request.needs_index
        return claim, faces, self.decide(claim, faces) if at_once else None

    def claim(self) -> _Claim:
        """The collection, and how many templates the claimed person has. Read before the photo is
        analysed, so that an unknown person costs no analysis. Raises CollectionNotFound,
        PersonNotFound and ConsentMissing."""
        store, person_id = self.services.gallery.store, self.request.person_id
        if person_id is None:
            return _Claim(store.collections.get(self.request.collection), 0)
        record, person = _claimed_person(store, self.request.collection, person_id)
        return _Claim(record, person.templates)

    async def analyse(self, claim: _Claim, photos: Sequence[bytes]) -> list[PhotoOutcome]:
        """The probe, with its liveness where the request or the gate asks for it; then the
        reference."""
        found = await side_by_side(
            [
                self._one_face(photos[:1], liveness=self.request.needs_liveness(claim.record)),
                self._one_face(photos[1:], liveness=False),
            ]
        )
        outcomes = [outcome for outcomes in found for outcome in outcomes]
        for outcome in outcomes:
            if isinstance(outcome, AnalysedImage):
                count_image(self.services, self.times, outcome)
        return outcomes

    def select(self, claim: _Claim, outcomes: Sequence[PhotoOutcome]) -> list[SelectedFace]:
        """The faces that are compared. The gate applies to the probe; the reference may be any
        picture."""
        gates = (policy_of(claim.record).verify_gate, OPEN_GATE)
        return [
            _select(outcome, self.request, name, gate)
            for outcome, name, gate in zip(outcomes, self.request.names, gates, strict=False)
        ]

    def decide(self, claim: _Claim, faces: Sequence[SelectedFace]) -> tuple[Verification, T]:
        """Compare the probe with the person or the reference, find the threshold, and decide. The
        outcome, and what `make` returns for it. Raises CollectionNotFound if the collection was
        deleted meanwhile: another one of its name has other people and another policy."""
        with bound_to(claim.record):
            answer = self._decided(claim, faces)
            return answer, self.make(answer)

    def _decided(self, claim: _Claim, faces: Sequence[SelectedFace]) -> Verification:
        services, request, record = self.services, self.request, claim.record
        vector = embedding_of(faces[0].face)
        nearest, size = None, ONE_COMPARISON
        compared: Face | Comparison
        chain = services.calibrations.chain(record)
        if len(faces) > 1:
            compared, reference_vector = faces[1].face, embedding_of(faces[1].face)
            similarity = services.gallery.comparator.score(vector, reference_vector)
        else:
            nearest = compared = _compare(services, record, request, vector, chain.score)
            similarity, size = nearest.similarity, nearest.compared
            reference_vector = nearest.embedding
        policy = policy_of(record)
        threshold = _threshold(services, request, (policy, chain), size)
        if not request.needs_index:  # that of a search follows the gallery instead
            threshold = threshold.for_pair(vector, reference_vector)
        named = request.threshold != ThresholdRequest()
        if nearest is not None and named and policy.candidates is ShownCandidates.IDENTIFIED:
            own = verification_threshold(ThresholdRequest(), policy, chain, size, size)
            refuse_lower(threshold, own.for_pair(vector, reference_vector), request.collection)
        reached = is_match(similarity, threshold.threshold)
        rejections, doubt = Rejections.of(services.gallery, request.collection, threshold), None
        rejected = rejections is not None and rejections.rejects(faces[0].face, compared)
        if nearest is not None and reached and not rejected:
            doubt = _doubt(services, record, threshold, nearest, vector)
        return Verification(
            faces[0], nearest, faces[1] if len(faces) > 1 else None, size, similarity, threshold,
            reached, doubt, rejected=rejected,
        )  # fmt: skip

    async def _one_face(self, photos: Sequence[bytes], *, liveness: bool) -> list[PhotoOutcome]:
        """The selected face of each photo, or why there is none."""
        services, selector = self.services, selector_of(self.request.face_selection)

        def work(photo: bytes) -> CooperativeTask[AnalysedImage]:
            return services.pipeline.steps(
                photo,
                max_faces=services.settings.max_faces,
                liveness=liveness,
                selector=selector,
            )

        return list(await each_photo(services, photos, work))


def _claimed_person(
    store: Store, collection: str, person_id: str
) -> tuple[CollectionRecord, PersonRecord]:
    """The collection and the claimed person. Raises CollectionNotFound, PersonNotFound, and
    ConsentMissing if the consent has ended."""
    record, person = store.persons.with_collection(collection, person_id)
    require_consent(record, person_id, person.consent_until, store.database.clock())
    return record, person


def _audited(answer: Verification) -> Search:
    """The number of the claimed person, and the details for the audit log."""
    details = {
        "reached": answer.reached,
        "rejected": answer.rejected,
        "ambiguous": answer.doubt is not None,
        "similarity": round(answer.similarity, 4),
        "threshold": round(answer.threshold.threshold, 4),
    }
    return None if answer.nearest is None else answer.nearest.face.person_key, details


def _select(
    outcome: PhotoOutcome, request: VerifyRequest, name: str, gate: QualityGate
) -> SelectedFace:
    try:
        if isinstance(outcome, LikenessError):
            raise outcome
        return SelectedFace(outcome, usable_face(outcome, request.face_selection, gate))
    except LikenessError as error:
        raise _named(error, name) from error


def _named(error: LikenessError, name: str) -> LikenessError:
    """The error, which also says of which photo it is."""
    return type(error)(f"'{name}': {error.detail}", error.extra)


def _compare(
    services: Services,
    record: CollectionRecord,
    request: VerifyRequest,
    probe: FloatArray,
    score: PersonScore,
) -> Comparison:
    """Raises NoFaceEnrolled for a person without faces, and ConsentMissing if the consent was
    withdrawn while the photo was analysed."""
    assert request.person_id is not None, "there is no reference"
    gallery = services.gallery
    nearest = gallery.compare(request.collection, request.person_id, probe, score)
    if needs_consent(record):
        _claimed_person(gallery.store, request.collection, request.person_id)
    if nearest is None:
        raise NoFaceEnrolled(
            f"The person '{request.person_id}' has no face enrolled; enroll a photo first."
        )
    return nearest


def _threshold(
    services: Services,
    request: VerifyRequest,
    rules: tuple[CollectionPolicy, CalibrationChain],
    compared: GallerySize,
) -> ThresholdDecision:
    # A comparison of two photos needs only the collection's policy, whatever the collection holds.
    # Only a target for searches needs to know how much there is to search.
    searched, likeness = compared, None
    if request.needs_index:
        searched = services.gallery.size(request.collection)
        likeness = services.gallery.likeness(request.collection)
    return verification_threshold(request.threshold, *rules, compared, searched, likeness=likeness)


def _doubt(
    services: Services,
    record: CollectionRecord,
    threshold: ThresholdDecision,
    nearest: Comparison,
    probe: FloatArray,
) -> Doubt | None:
    pairs = PairRules(services.gallery, record, threshold.calibration, threshold.score)
    claim = Candidate(nearest.face, nearest.similarity, None)
    return pairs.doubt(claim, probe)
