"""Is this the person, or are two photos of one person?"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.decision.calibrations import policy_of
from app.decision.pairs import PairRules
from app.decision.policy import (
    OPEN_GATE,
    FaceSelection,
    QualityGate,
    is_match,
    selector_of,
    usable_face,
)
from app.decision.thresholds import (
    ONE_COMPARISON,
    CalibrationChain,
    CollectionPolicy,
    ThresholdDecision,
    ThresholdRequest,
    verification_threshold,
)
from app.decision.verdicts import Doubt, Refusals
from app.errors import LikenessError, NoFace
from app.gallery.candidates import Candidate, Comparison
from app.index.person_scores import PersonScore
from app.index.port import GallerySize
from app.recognition.analysis import (
    PhotoOutcome,
    StageTimes,
    count_image,
    each_photo,
    embedding_of,
)
from app.services import Services
from app.store.records import CollectionRecord
from app.store.sql.audit_log import Search
from app.store.sql.consents import needs_consent, require_consent
from app.store.store import Store
from app.types import AnalysedImage, CooperativeTask, Face, FloatArray


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


@dataclass(frozen=True, slots=True)
class SelectedFace:
    """The face of a photo that is compared."""

    image: AnalysedImage
    face: Face


@dataclass(frozen=True, slots=True)
class Verification:
    """The probe and what it was compared with: the nearest face of the claimed person, or the
    reference. `reached`: whether the threshold is. `doubt`: the claim is ambiguous nevertheless;
    `refused`: both faces are outside the calibrated domain."""

    probe: SelectedFace
    nearest: Comparison | None
    reference: SelectedFace | None
    similarity: float
    threshold: ThresholdDecision
    reached: bool
    doubt: Doubt | None
    refused: bool


async def verify(
    services: Services,
    probe: bytes,
    reference: bytes | None,
    request: VerifyRequest,
    times: StageTimes,
) -> Verification:
    """Compare the probe with the claimed person, or with the reference where no person is named.

    Raises CollectionNotFound, PersonNotFound, ConsentMissing for a person whose consent has ended,
    EmbeddingSpaceMismatch, NoFace for a person without faces, the ImageError and FaceError
    families, RateOutOfReach and NotCalibrated.
    """
    store = services.gallery.store
    record = await services.scheduler.read(store.collections.get, request.collection)
    if request.person_id is not None:
        # Before any network runs: an unknown person costs nothing.
        await services.scheduler.read(_require_claimed, store, record, request.person_id)
    gate = policy_of(record).verify_gate
    photos = [probe] if reference is None else [probe, reference]
    outcomes = await _analyse(services, times, photos, request, gate)
    faces = [
        # The gate applies to the probe; the reference may be any picture.
        _select(outcome, request, name, one_gate)
        for outcome, name, one_gate in zip(outcomes, request.names, (gate, OPEN_GATE), strict=False)
    ]
    vector = embedding_of(faces[0].face)
    nearest, size = None, ONE_COMPARISON
    chain = await services.scheduler.read(services.calibrations.chain, record)
    if len(faces) > 1:
        reference_vector = embedding_of(faces[1].face)
        similarity = services.gallery.comparator.score(vector, reference_vector)
    else:
        nearest = await _nearest(services, record, request, vector, chain.score)
        similarity, size = nearest.similarity, nearest.compared
        reference_vector = nearest.embedding
    threshold = await services.scheduler.search(
        _threshold, services, request, (policy_of(record), chain), size
    )
    if request.threshold.target_fpir is None:  # that of a search follows the gallery instead
        threshold = threshold.for_pair(vector, reference_vector)
    reached = is_match(similarity, threshold.threshold)
    other = faces[1] if len(faces) > 1 else None
    refusals, doubt = Refusals.of(services.gallery, request.collection, threshold), None
    compared = nearest if other is None else other.face
    assert compared is not None, "one of the two is given"
    refused = refusals is not None and refusals.refuses(faces[0].face, compared)
    if nearest is not None and reached and not refused:
        doubt = await _doubt(services, record, threshold, nearest, vector)
    answer = Verification(
        faces[0], nearest, other, similarity, threshold, reached, doubt, refused=refused
    )
    if nearest is not None and reached and not refused and doubt is None:
        services.matches.note(record, [nearest.face.person_id])
    if policy_of(record).audit_searches:
        audit = services.gallery.store.audit
        await services.scheduler.write(
            audit.record_searches, record, "face.verified", [_audited(answer)]
        )
    return answer


def _require_claimed(store: Store, record: CollectionRecord, person_id: str) -> None:
    """Raise PersonNotFound or ConsentMissing if nobody may be compared with the person."""
    person = store.persons.get(record.name, person_id)
    require_consent(record, person_id, person.consent_until, store.database.clock())


def _audited(answer: Verification) -> Search:
    """The id of the claimed person, and the details for the audit log."""
    details = {
        "reached": answer.reached,
        "refused": answer.refused,
        "ambiguous": answer.doubt is not None,
        "similarity": round(answer.similarity, 4),
        "threshold": round(answer.threshold.threshold, 4),
    }
    return None if answer.nearest is None else answer.nearest.face.person_id, details


async def _analyse(
    services: Services,
    times: StageTimes,
    photos: Sequence[bytes],
    request: VerifyRequest,
    gate: QualityGate,
) -> list[PhotoOutcome]:
    """The probe, with its liveness where the request or the gate asks for it; then the
    reference."""
    live = request.liveness or gate.min_liveness is not None
    found = await asyncio.gather(
        _one_face(services, photos[:1], request, liveness=live),
        _one_face(services, photos[1:], request, liveness=False),
    )
    outcomes = [outcome for outcomes in found for outcome in outcomes]
    for outcome in outcomes:
        if isinstance(outcome, AnalysedImage):
            count_image(services, times, outcome)
    return outcomes


async def _one_face(
    services: Services, photos: Sequence[bytes], request: VerifyRequest, *, liveness: bool
) -> list[PhotoOutcome]:
    """The selected face of each photo, or why there is none."""

    def work(data: bytes) -> CooperativeTask[AnalysedImage]:
        return services.pipeline.steps(
            data,
            max_faces=services.settings.max_faces,
            liveness=liveness,
            selector=selector_of(request.face_selection),
        )

    return list(await each_photo(services, photos, work))


def _select(
    outcome: PhotoOutcome, request: VerifyRequest, name: str, gate: QualityGate
) -> SelectedFace:
    try:
        if isinstance(outcome, LikenessError):
            raise outcome
        return SelectedFace(outcome, usable_face(outcome, request.face_selection, gate))
    except LikenessError as error:
        raise type(error)(f"'{name}': {error.detail}", error.extra) from error


def _compare(
    services: Services,
    record: CollectionRecord,
    request: VerifyRequest,
    probe: FloatArray,
    score: PersonScore,
) -> Comparison | None:
    """Raises ConsentMissing if the consent was withdrawn while the photo was analysed."""
    assert request.person_id is not None, "there is no reference"
    gallery = services.gallery
    nearest = gallery.compare(request.collection, request.person_id, probe, score)
    if needs_consent(record):
        _require_claimed(gallery.store, record, request.person_id)
    return nearest


async def _nearest(
    services: Services,
    record: CollectionRecord,
    request: VerifyRequest,
    probe: FloatArray,
    score: PersonScore,
) -> Comparison:
    nearest = await services.scheduler.read(_compare, services, record, request, probe, score)
    if nearest is None:
        raise NoFace(
            f"The person '{request.person_id}' has no face enrolled; enroll a photo first."
        )
    return nearest


def _threshold(
    services: Services,
    request: VerifyRequest,
    rules: tuple[CollectionPolicy, CalibrationChain],
    claimed_person_size: GallerySize,
) -> ThresholdDecision:
    # Two photos are compared whatever the collection holds: of it they only need the policy.
    # Only a target for searches needs to know how much there is to search.
    searched, likeness = claimed_person_size, None
    if request.threshold.target_fpir is not None:
        searched = services.gallery.size(request.collection)
        likeness = services.gallery.likeness(request.collection)
    return verification_threshold(
        request.threshold, *rules, claimed_person_size, searched, likeness=likeness
    )


async def _doubt(
    services: Services,
    record: CollectionRecord,
    threshold: ThresholdDecision,
    nearest: Comparison,
    probe: FloatArray,
) -> Doubt | None:
    pairs = PairRules(services.gallery, record, threshold.calibration, threshold.score)
    claim = Candidate(nearest.face, nearest.similarity, None)
    return await services.scheduler.read(pairs.doubt, claim, probe)
