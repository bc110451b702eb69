"""Photos, or embeddings made elsewhere, become templates of a person; imports store the same
templates.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from app.decision.face_selection import FaceSelection, selector_of
from app.decision.gates import check_quality
from app.decision.policy import CollectionPolicy, policy_of
from app.errors import (
    EmbeddingSpaceMismatch,
    FaceError,
    ImageError,
    InvalidEmbedding,
    LikenessError,
)
from app.faces.pipeline import run_to_completion
from app.imaging import encode_crop
from app.recognition.analysis import StageTimes, count_image, each_photo, infer_and_write
from app.services import Services
from app.store.records import (
    CollectionRecord,
    IdempotencyRequest,
    NewTemplate,
    PersonEnrollment,
    RequestKey,
    StoredTemplate,
)
from app.store.sql.lookups import bound_to
from app.types import AnalysedImage, CooperativeTask, Face, FloatArray, JsonObject

# Embeddings that are checked on the event loop: 30 µs each, and a thread that does it costs more.
MOST_ON_THE_LOOP = 4


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
    """Templates for one person of a collection: of photos, or of `embeddings` instead of them,
    which are of `embedding_space` if that is known. Metadata replaces what the person had, unless
    it is None."""

    collection: str
    person_id: str
    metadata: JsonObject | None = None
    embeddings: Sequence[Sequence[float] | FloatArray] = ()
    face_selection: FaceSelection = FaceSelection.ONLY
    embedding_space: str | None = None


@dataclass(frozen=True, slots=True)
class EnrolledTemplate:
    """A template and what became of it."""

    template: NewTemplate
    stored: StoredTemplate


@dataclass(frozen=True, slots=True)
class Enrollment:
    """By the number of the photo or embedding: what is stored, and why others are not."""

    stored: Mapping[int, EnrolledTemplate]
    rejected: Mapping[int, LikenessError]


@dataclass(frozen=True, slots=True)
class AnswerToKeep:
    """For an enrollment that is done once: its key, and what is kept to answer again."""

    key: RequestKey
    answer: Callable[[Enrollment], JsonObject]


# What is stored, and whether this process's index is open: then it has the templates, or another
# thread is updating it.
_Stored = tuple[Sequence[StoredTemplate], bool]


async def enroll(
    services: Services,
    photos: Sequence[bytes],
    request: EnrollRequest,
    times: StageTimes,
    *,
    kept: AnswerToKeep | None = None,
) -> Enrollment:
    """Store a template for each photo with one usable face, on disk when this returns; a search
    that begins later finds it. Where there is none, nothing is stored and no person created.

    Raises CollectionNotFound, EmbeddingSpaceMismatch, InvalidEmbedding, StoreFull, ConsentMissing
    if the collection needs a consent and the person has none (normally before any photo is
    analysed), and with `kept` EnrolledBefore and IdempotencyKeyReused.
    """
    work = _Work(services, request, times, kept)
    if request.embeddings:
        return await work.of_embeddings()
    return await (work.of_photo(photos[0]) if len(photos) == 1 else work.of_several(photos))


@dataclass(frozen=True, slots=True)
class _Work:
    """One enrollment."""

    services: Services
    request: EnrollRequest
    times: StageTimes
    kept: AnswerToKeep | None

    async def of_photo(self, data: bytes) -> Enrollment:
        """With a database in this process, everything before the write is done on the photo's
        thread, so that no other thread is waited for in between."""
        in_process = self.services.gallery.store.database.in_process
        known = None if in_process else await self.services.scheduler.read(self._collection)
        made, analysed_at = dict[int, NewTemplate](), 0.0

        def steps() -> CooperativeTask[PersonEnrollment]:
            nonlocal analysed_at
            record = known or self._collection()
            image, made[0] = yield from template_task(
                self.services, data, self.request.face_selection, policy_of(record)
            )
            count_image(self.services, self.times, image)
            analysed_at = time.perf_counter()
            with bound_to(record):
                return self._enrollment(made, {})

        try:
            done = await infer_and_write(
                self.services, data, steps(), self.request.collection, self._store
            )
        except (ImageError, FaceError) as error:
            return Enrollment({}, {0: error})
        self.times.add({"store": (time.perf_counter() - analysed_at) * 1000})
        return await self._searchable(_enrollment(made, {}, done[0]), done)

    async def of_several(self, photos: Sequence[bytes]) -> Enrollment:
        """Of several photos, which are analysed side by side."""
        record = await self.services.scheduler.read(self._collection)
        outcomes = await self._templates(photos, policy_of(record))
        templates = {i: made for i, made in enumerate(outcomes) if isinstance(made, NewTemplate)}
        rejected = {
            i: error for i, error in enumerate(outcomes) if isinstance(error, LikenessError)
        }
        with bound_to(record):
            return await self._written(templates, rejected)

    async def of_embeddings(self) -> Enrollment:
        """Of embeddings, for which the policy has no limits: so nothing is read before the write,
        which checks the collection and the consent itself."""
        scheduler = self.services.scheduler
        try:
            if len(self.request.embeddings) <= MOST_ON_THE_LOOP:
                made = self._templates_of_embeddings()
            else:
                made = await scheduler.search(self._templates_of_embeddings)
        except (InvalidEmbedding, EmbeddingSpaceMismatch):
            await scheduler.read(self._collection)  # what is wrong with the collection comes first
            raise
        return await self._written(dict(enumerate(made)), {})

    async def _written(
        self, templates: Mapping[int, NewTemplate], rejected: Mapping[int, LikenessError]
    ) -> Enrollment:
        if not templates:
            return Enrollment({}, rejected)
        one = self._enrollment(templates, rejected)
        with self.times.stage("store"):
            done = await self.services.scheduler.write_together(
                self.request.collection, self._store, one, len(templates)
            )
        return await self._searchable(_enrollment(templates, rejected, done[0]), done)

    def _templates_of_embeddings(self) -> list[NewTemplate]:
        given, space = self.request.embeddings, self.services.pack.embedding_space
        if self.request.embedding_space not in (None, space):
            raise EmbeddingSpaceMismatch(
                f"The embeddings are of {self.request.embedding_space}, and the running pack makes "
                f"{space}; they cannot be compared. Make them again with the running pack."
            )
        return [template_from_embedding(self.services, values) for values in given]

    def _collection(self) -> CollectionRecord:
        """The collection, whose policy says which photos it takes: so they are stored in no other
        one that gets its name. Raises CollectionNotFound, EmbeddingSpaceMismatch, and
        ConsentMissing if it needs a consent and the person has none."""
        gallery = self.services.gallery
        record = gallery.require(self.request.collection)
        if policy_of(record).consent_required:
            given = [(self.request.person_id, self.request.metadata)]
            persons = gallery.store.persons
            for error in persons.refused_consents(self.request.collection, given).values():
                raise error
        return record

    async def _templates(
        self, photos: Sequence[bytes], policy: CollectionPolicy
    ) -> Sequence[NewTemplate | LikenessError]:
        services, request = self.services, self.request

        def work(data: bytes) -> CooperativeTask[tuple[AnalysedImage, NewTemplate]]:
            return template_task(services, data, request.face_selection, policy)

        templates: list[NewTemplate | LikenessError] = []
        for outcome in await each_photo(services, photos, work):
            if isinstance(outcome, LikenessError):
                templates.append(outcome)
            else:
                count_image(services, self.times, outcome[0])
                templates.append(outcome[1])
        return templates

    def _enrollment(
        self,
        templates: Mapping[int, NewTemplate],
        rejected: Mapping[int, LikenessError],
    ) -> PersonEnrollment:
        """What the store has to do."""
        idempotency = None
        if self.kept is not None:
            key, answer = self.kept.key, self.kept.answer
            idempotency = IdempotencyRequest(
                key.key,
                key.request_digest,
                lambda stored: answer(_enrollment(templates, rejected, stored)),
            )
        return PersonEnrollment(
            self.request.person_id, self.request.metadata, list(templates.values()), idempotency
        )

    def _store(self, several: Sequence[PersonEnrollment]) -> Sequence[_Stored | Exception]:
        """Store enrollments of the collection together: this one, and others that wait."""
        gallery = self.services.gallery
        outcomes, is_open = gallery.enroll_together(self.request.collection, several)
        return [done if isinstance(done, Exception) else (done, is_open) for done in outcomes]

    async def _searchable(self, enrollment: Enrollment, done: _Stored) -> Enrollment:
        """Update the index if storing did not."""
        if not done[1]:  # an index that has to be read first takes longer
            gallery = self.services.gallery
            await self.services.scheduler.search(gallery.follow, self.request.collection)
        return enrollment


def _enrollment(
    templates: Mapping[int, NewTemplate],
    rejected: Mapping[int, LikenessError],
    stored: Sequence[StoredTemplate],
) -> Enrollment:
    pairs = zip(templates.items(), stored, strict=True)
    return Enrollment({i: EnrolledTemplate(new, one) for (i, new), one in pairs}, rejected)
