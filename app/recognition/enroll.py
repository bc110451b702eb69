"""Photos, or embeddings, become templates of a person."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from app.decision.policy import FaceSelection
from app.decision.thresholds import CollectionPolicy
from app.errors import LikenessError
from app.recognition.analysis import StageTimes, each_photo, record
from app.recognition.templates import template_from_embedding, template_task
from app.services import Services
from app.store.records import IdempotencyRequest, NewTemplate, RequestKey, StoredTemplate
from app.store.sql.consents import consent_until, needs_consent, require_consent
from app.store.store import Store
from app.types import AnalysedImage, CooperativeTask, FloatArray, JsonObject


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
class KeptAnswer:
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
    kept: KeptAnswer | None = None,
) -> Enrollment:
    """Store a template for each photo with one usable face, on disk and searchable when this
    returns. Where there is none, nothing is stored and no person created.

    Raises CollectionNotFound, EmbeddingSpaceMismatch, InvalidEmbedding, StoreFull, ConsentMissing
    if the collection needs a consent (then no photo is analysed), and with `kept` EnrolledBefore
    and IdempotencyKeyReused.
    """
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
    new = list(templates.values())
    with times.stage("store"):
        stored = await services.scheduler.write(
            partial(services.gallery.put, idempotency=idempotency),
            request.collection, request.person_id, request.metadata, new,
        )  # fmt: skip
        await services.scheduler.search(services.gallery.follow, request.collection)
    return enrollment(stored)


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
