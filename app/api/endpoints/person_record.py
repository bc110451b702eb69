"""`/v1/collections/{c}/persons/{p}/record`: everything that is held about a person."""

import base64
from collections.abc import Sequence
from datetime import date, datetime
from typing import Annotated, Any, Self

from fastapi import Query
from pydantic import BaseModel, Field

from app.access.keys import Scope
from app.api.access import needs
from app.api.context import Context, client_watch
from app.api.endpoints.persons import PersonInfo
from app.api.fields import Collection
from app.api.json_bodies import JsonRoute
from app.api.problems import IN_COLLECTION, problems
from app.api.responses import TIME, Cursor, Example, ListCursors, Listed, example_of
from app.api.routers import GalleryRouter
from app.errors import InvalidCursor, PersonNotFound, StoreFull
from app.gallery.person_record import ELSEWHERE, HeldData, held_data, note_export
from app.store.records import AlternateEmbedding, ExportedTemplate, Page
from app.store.sql.audit_log import AuditEntry
from app.store.sql.consents import Consent

router = GalleryRouter(
    prefix="/v1/collections/{collection}/persons", tags=["collections"], route_class=JsonRoute
)
MOST_FACES = 100


class HeldAlternate(BaseModel):
    """The face's embedding of another model pack."""

    embedding_space: Annotated[str, Example("es-77aa01d2")]
    embedding: Annotated[list[float], Example([0.3, 0.1])]


class HeldFace(BaseModel):
    """One stored face, with its embedding."""

    face_id: Annotated[str, Example("7f8de8f5-53c9-4a52-9e3a-1d2b7f3f1f11")]
    created_at: Annotated[datetime, Example(TIME)]
    quality: Annotated[dict[str, Any], Example({"sharpness": 210.5})]
    embedding: Annotated[
        list[float], Field(description="Scaled to length 1."), Example([0.12, -0.05])
    ]
    crop: Annotated[
        str | None,
        Field(description="The aligned face as PNG in base64, where the collection keeps it."),
        Example(None),
    ] = None
    content_digest: Annotated[
        str | None,
        Field(description="SHA-256 of the photo or embedding; null where it is stored encrypted."),
        Example("9f" * 32),
    ] = None
    alternate_embeddings: Annotated[
        list[HeldAlternate],
        Field(description="During and after a migration to another model pack."),
        Example([]),
    ]

    @classmethod
    def of(cls, face: ExportedTemplate, alternates: Sequence[AlternateEmbedding]) -> Self:
        """A face as an answer shows it."""
        return cls(
            face_id=face.face_id,
            created_at=face.created_at,
            quality=dict(face.quality),
            embedding=face.embedding.tolist(),
            crop=None if face.crop is None else base64.b64encode(face.crop).decode(),
            content_digest=face.content_digest,
            alternate_embeddings=[
                HeldAlternate(embedding_space=one.embedding_space, embedding=one.embedding.tolist())
                for one in alternates
            ],
        )


class HeldConsent(BaseModel):
    """The consent that the person's metadata has."""

    reference: Annotated[str, Example("form 2026-0117")]
    valid_until: Annotated[
        datetime | None,
        Field(description="Null: it does not end, or was withdrawn."),
        Example(TIME),
    ]
    withdrawn: Annotated[bool, Example(False)]

    @classmethod
    def of(cls, consent: Consent) -> Self:
        """A consent as an answer shows it."""
        return cls(
            reference=consent.reference,
            valid_until=consent.valid_until,
            withdrawn=consent.withdrawn,
        )


class HeldAnswer(BaseModel):
    """The answer of an enrollment, kept for 24 hours for its `Idempotency-Key`."""

    idempotency_key: Annotated[str, Example("5f0c")]
    answer: Annotated[dict[str, Any], Example({"person_id": "ada"})]
    created_at: Annotated[datetime, Example(TIME)]


class HeldPair(BaseModel):
    """Another person whom this one was declared to be different from."""

    other_id: Annotated[str, Example("grace")]
    created_at: Annotated[datetime, Example(TIME)]


class PersonHistory(BaseModel):
    """One entry of the audit log about the person."""

    at: Annotated[datetime, Example(TIME)]
    actor: Annotated[str, Example("key:q7w2m9x4k6ab")]
    action: Annotated[str, Example("person.enrolled")]
    details: Annotated[dict[str, Any], Example({"templates": 2})]

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        """An entry as an answer shows it."""
        found = entry.members
        return cls(**{name: found[name] for name in cls.model_fields})


class PersonRecordAnswer(Listed):
    """Everything in the database about a person. The faces are paged; each page has the rest."""

    person: PersonInfo
    last_active_on: Annotated[
        date | None,
        Field(
            description="The day of the last enrollment or match (of UTC), which is stored where "
            "the policy has retention_days."
        ),
        Example("2026-11-26"),
    ] = None
    consent: Annotated[HeldConsent | None, Example(example_of(HeldConsent))] = None
    embedding_space: Annotated[str, Example("es-3f9c0d6a")]
    faces: list[HeldFace]
    different_from: list[HeldPair]
    kept_answers: list[HeldAnswer]
    import_rows: Annotated[
        list[dict[str, Any]],
        Field(
            description="What reports of imports have about the person, on the first page: the "
            "first 1,000 rows; of rows of other persons that name this one only the outcome."
        ),
        Example([{"import_id": "0d7c", "place": "ada/1.jpg", "result": "enrolled"}]),
    ]
    more_import_rows: Annotated[
        bool,
        Field(description="On the first page: whether the reports have more rows than these."),
        Example(False),
    ]
    history: Annotated[
        list[PersonHistory],
        Field(description="At most 1,000 entries of the audit log, the newest ones, in order."),
    ]
    history_is_longer: Annotated[
        bool,
        Field(description="Whether the audit log has older entries about the person."),
        Example(False),
    ]
    elsewhere: Annotated[
        list[str],
        Field(description="Where else data about the person may be, outside this answer."),
        Example(["backups made by `likeness backup`"]),
    ]

    @classmethod
    def of(
        cls,
        held: HeldData,
        import_rows: list[dict[str, Any]],
        more_import_rows: bool,
        next_cursor: str | None,
        envelope: dict[str, Any],
    ) -> Self:
        """An answer's members."""
        return cls(
            person=PersonInfo.of(held.person),
            embedding_space=held.embedding_space,
            last_active_on=held.person.active_at and held.person.active_at.date(),
            consent=held.consent and HeldConsent.of(held.consent),
            faces=[
                HeldFace.of(one, held.alternates.get(one.template_key, ())) for one in held.faces
            ],
            kept_answers=[
                HeldAnswer(
                    idempotency_key=one.key, answer=dict(one.answer), created_at=one.created_at
                )
                for one in held.answers
            ],
            import_rows=import_rows,
            more_import_rows=more_import_rows,
            different_from=[
                HeldPair(other_id=pair.other_id, created_at=pair.created_at) for pair in held.pairs
            ],
            history=[PersonHistory.of(entry) for entry in held.entries],
            history_is_longer=held.older_entries,
            elsewhere=ELSEWHERE,
            next_cursor=next_cursor,
            **envelope,
        )


@router.get(
    "/{person_id}/record",
    responses=problems(IN_COLLECTION, (PersonNotFound, InvalidCursor, StoreFull)),
)
@needs(Scope.MANAGE)
async def read_person_record(
    context: Context,
    collection: Collection,
    person_id: str,
    limit: Annotated[int, Query(ge=1, le=MOST_FACES, description="Faces on a page.")] = MOST_FACES,
    cursor: Cursor = None,
) -> PersonRecordAnswer:
    """Read everything that is stored about a person, embeddings and kept crops included: the answer
    to the person's request for access."""
    cursors = ListCursors("record", collection, person_id)
    key = cursors.key(cursor) or "0"
    if not key.isascii() or not key.isdigit():
        raise cursors.invalid()
    after = min(int(key[:18]), 2**62)

    held = await context.read(held_data, context.store, collection, person_id, after, limit)
    await context.write(note_export, context.store, held, len(held.faces))
    with client_watch() as check:

        def answer() -> PersonRecordAnswer:
            rows: tuple[list[dict[str, Any]], bool] = ([], False)
            if not after:
                known = held.person.person_id
                rows = context.imports.rows_about(collection, known, check)
            page = Page(held.faces, held.more)
            following = cursors.following(page, lambda face: str(face.template_key))
            return PersonRecordAnswer.of(held, *rows, following, context.envelope())

        return await context.read_reports(answer)
