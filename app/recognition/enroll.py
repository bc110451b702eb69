"""Photos, or embeddings made elsewhere, become templates of a person; imports store the same
templates.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from app.decision.policy import FaceSelection, check_quality, selector_of
from app.decision.thresholds import CollectionPolicy
from app.errors import LikenessError
from app.faces.pipeline import run_to_completion
from app.imaging import encode_crop
from app.recognition.analysis import StageTimes, each_photo, record
from app.services import Services
from app.store.records import (
    IdempotencyRequest,
    NewTemplate,
    PersonEnrollment,
    RequestKey,
    StoredTemplate,
)
from app.store.sql.consents import consent_until, needs_consent, require_consent
from app.store.store import Store
from app.types import AnalysedImage, CooperativeTask, Face, FloatArray, JsonObject


def template_task(
    services: Services, data: bytes, selection: FaceSelection, policy: CollectionPolicy
) -> CooperativeTask[tuple[AnalysedImage, NewTemplate]]:
    """Analyse a photo and make a template of its one face, in steps.

    Raises the ImageError and FaceError families.
    """
    gate = policy.enroll_gate
    image = yield from services.pipeline.steps(
        data,
        max_faces=services.settings.max_faces,
        liveness=gate.min_liveness is not None,
        crops=policy.keep_crops,
        selector=selector_of(selection),
    )
    (face,) = image.faces
    check_quality(face, gate)
    return image, _template(face, data)


def template_from_photo(
    services: Services, data: bytes, selection: FaceSelection, policy: CollectionPolicy
) -> NewTemplate:
    """`template_task` at once, on the caller's thread."""
    return run_to_completion(template_task(services, data, selection, policy))[1]


def template_from_embedding(
    services: Services, values: Sequence[float] | FloatArray
) -> NewTemplate:
    """A template of an embedding made elsewhere in the same space. Raises InvalidEmbedding."""
    vector = services.gallery.check_embedding(values)
    return NewTemplate(vector, content_digest(vector.tobytes()))


def content_digest(data: bytes) -> str:
    """The SHA-256 of a photo or an embedding, by which it is stored once for a person."""
    return hashlib.sha256(data).hexdigest()


def _template(face: Face, data: bytes) -> NewTemplate:
    assert face.embedding is not None, "the pipeline was asked to embed"
    crop = None if face.crop is None else encode_crop(face.crop)
    return NewTemplate(face.embedding, content_digest(data), asdict(face.quality), crop)


@dataclass(frozen=True, slots=True)
class EnrollRequest:
    """Templates for one person of a collection: of photos, or of `embeddings` instead of them.
    Metadata replaces what the person had, unless it is None."""

    collection: str
    person_id: str
    metadata: JsonObject | None = None
    embeddings: Sequence[Sequence[float] | FloatArray] = ()
    face_selection: FaceSelection = FaceSelection.ONLY


@dataclass(frozen=True, slots=True)
class EnrolledTemplate:
    """A template and what became of it."""

    template: NewTemplate
    stored: StoredTemplate


@dataclass(frozen=True, slots=True)
class Enrollment:
    """By the number of the photo or embedding: what is stored, and why others are not."""

    stored: Mapping[int, EnrolledTemplate]
    refused: Mapping[int, LikenessError]


@dataclass(frozen=True, slots=True)
class AnswerToKeep:
    """For an enrollment that is done once: its key, and what is kept to answer again."""

    key: RequestKey
    answer: Callable[[Enrollment], JsonObject]


async def enroll(
    services: Services,
    photos: Sequence[bytes],
    request: EnrollRequest,
    policy: CollectionPolicy,
    times: StageTimes,
    *,
    kept: AnswerToKeep | None = None,
) -> Enrollment:
    """Store a template for each photo with one usable face, on disk and searchable when this
    returns. Where there is none, nothing is stored and no person created.

    Raises CollectionNotFound, EmbeddingSpaceMismatch, InvalidEmbedding, StoreFull, ConsentMissing
    if the collection needs a consent (then no photo is analysed), and with `kept` EnrolledBefore
    and IdempotencyKeyReused.
    """
    if policy.consent_required:
        await services.scheduler.read(_require_consent, services.gallery.store, request)
    outcomes = await _templates(services, photos, request, policy, times)
    templates = {i: made for i, made in enumerate(outcomes) if isinstance(made, NewTemplate)}
    refused = {i: error for i, error in enumerate(outcomes) if isinstance(error, LikenessError)}
    if not templates:
        return Enrollment({}, refused)

    def enrollment(stored: Sequence[StoredTemplate]) -> Enrollment:
        pairs = zip(templates.items(), stored, strict=True)
        return Enrollment({i: EnrolledTemplate(new, one) for (i, new), one in pairs}, refused)

    idempotency = None
    if kept is not None:
        answer = kept.answer
        idempotency = IdempotencyRequest(
            kept.key.key, kept.key.request_digest, lambda stored: answer(enrollment(stored))
        )
    one = PersonEnrollment(
        request.person_id, request.metadata, list(templates.values()), idempotency
    )
    with times.stage("store"):
        return enrollment(await _store(services, request.collection, one))


async def _store(
    services: Services, collection: str, one: PersonEnrollment
) -> Sequence[StoredTemplate]:
    """Store an enrollment together with others of the collection that wait."""

    def store(several: Sequence[PersonEnrollment]) -> Sequence[_Stored | Exception]:
        outcomes, followed = services.gallery.enroll_together(collection, several)
        return [done if isinstance(done, Exception) else (done, followed) for done in outcomes]

    stored, followed = await services.scheduler.write_together(
        collection, store, one, len(one.templates)
    )
    if not followed:  # an index that has to be read first takes longer
        await services.scheduler.search(services.gallery.follow, collection)
    return stored


# What is stored, and whether this process's index was updated.
_Stored = tuple[Sequence[StoredTemplate], bool]


def _require_consent(store: Store, request: EnrollRequest) -> None:
    """Raise ConsentMissing if the person has no consent and the collection needs one. The
    transaction that stores the templates checks it again."""
    record = store.collections.get(request.collection)
    if not needs_consent(record):
        return
    if request.metadata is not None:
        until = consent_until(request.metadata)
    else:
        known = store.imports.consents(request.collection, [request.person_id])
        until = next(iter(known.values()), None)
    require_consent(record, request.person_id, until, store.database.clock())


async def _templates(
    services: Services,
    photos: Sequence[bytes],
    request: EnrollRequest,
    policy: CollectionPolicy,
    times: StageTimes,
) -> Sequence[NewTemplate | LikenessError]:
    if request.embeddings:
        given = request.embeddings
        return await services.scheduler.search(
            lambda: [template_from_embedding(services, values) for values in given]
        )

    def work(data: bytes) -> CooperativeTask[tuple[AnalysedImage, NewTemplate]]:
        return template_task(services, data, request.face_selection, policy)

    templates: list[NewTemplate | LikenessError] = []
    for outcome in await each_photo(services, photos, work):
        if isinstance(outcome, LikenessError):
            templates.append(outcome)
        else:
            record(services, times, outcome[0])
            templates.append(outcome[1])
    return templates
