"""`likeness person`: everything that is held about one person."""

import base64
import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from app.access.keys import audit_key
from app.cli.console import err, read_settings, require_database
from app.cli.output import writing
from app.disk import write_whole
from app.encryption.ring import KeyRing
from app.gallery.person_record import ELSEWHERE, held_data, note_export
from app.importing.job_folder import JobFolder
from app.importing.reports import rows_about
from app.store.identifiers import DEFAULT_COLLECTION
from app.store.metadata import problem_of
from app.store.sql.consents import Consent
from app.store.store import Store, opened_store
from app.types import FloatArray

person_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Write the record of one person to a folder.",
)
PAGE = 500


@person_app.callback()
def _several() -> None:
    """Write the record of one person to a folder."""


@person_app.command()
def export(
    person_id: Annotated[str, typer.Argument(help="Id of the person.")],
    folder: Annotated[Path, typer.Argument(help="A new folder: record.json, and kept crops.")],
    collection: Annotated[str, typer.Option(help="Name of the collection.")] = DEFAULT_COLLECTION,
) -> None:
    """Write what the database and the reports of imports hold about a person, embeddings included,
    for a request for access. record.json says whether rows or entries were left out, and where
    else data of the person may be. Keep the folder as you keep photos."""
    settings = require_database(read_settings())
    ring = KeyRing.from_settings(settings)
    with writing(folder):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise typer.BadParameter(f"{folder} exists already; name a new folder.") from None
    try:
        with opened_store(settings.resolved_database_url, ring, audit_key(settings)) as store:
            record, crops = _record(store, collection, person_id)
            reports = JobFolder(settings.data_dir / "imports")
            rows, more = rows_about(reports, collection, record["person"]["person_id"])
            record |= {"import_rows": rows, "more_import_rows": more}
        crops["record.json"] = json.dumps(record, indent=1, ensure_ascii=False).encode()
        with writing(folder):
            for name, content in crops.items():
                write_whole(folder / name, [content])
    except BaseException:  # a part of the record is biometric data that nobody would look for
        shutil.rmtree(folder, ignore_errors=True)
        raise
    err.print(f"{folder}: {len(record['faces'])} faces, {len(crops) - 1} crops", highlight=False)


def _record(
    store: Store, collection: str, person_id: str
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record in JSON's types, with the members of the HTTP call's answer, and the crops by file
    name."""
    faces: list[dict[str, Any]] = []
    crops: dict[str, bytes] = {}
    after, more = 0, True
    while more:
        held = held_data(store, collection, person_id, after, PAGE)
        for face in held.faces:
            if face.crop is not None:
                crops[f"{face.face_id}.png"] = face.crop
            faces.append(
                {
                    "face_id": face.face_id,
                    "created_at": face.created_at.isoformat(),
                    "quality": dict(face.quality),
                    "embedding": _text(face.embedding),
                    "crop": None if face.crop is None else f"{face.face_id}.png",
                    "content_digest": face.content_digest,
                    "alternate_embeddings": [
                        {"embedding_space": one.embedding_space, "embedding": _text(one.embedding)}
                        for one in held.alternates.get(face.template_key, ())
                    ],
                }
            )
        more = held.more
        after = held.faces[-1].template_key if held.faces else after
    note_export(store, held, len(faces))
    person = held.person
    record = {
        "collection": collection,
        "person": {
            "person_id": person.person_id,
            "metadata": dict(person.metadata),
            "metadata_problem": problem_of(person.metadata),
            "faces": person.templates,
            "created_at": person.created_at.isoformat(),
            "updated_at": person.updated_at.isoformat(),
        },
        "last_active_on": person.active_at and person.active_at.date().isoformat(),
        "consent": held.consent and _consent(held.consent),
        "embedding_space": held.embedding_space,
        "faces": faces,
        "kept_answers": [
            {
                "idempotency_key": one.key,
                "answer": dict(one.answer),
                "created_at": one.created_at.isoformat(),
            }
            for one in held.answers
        ],
        "different_from": [
            {"other_id": pair.other_id, "created_at": pair.created_at.isoformat()}
            for pair in held.pairs
        ],
        "history": [entry.members for entry in held.entries],
        "history_is_longer": held.older_entries,
        "elsewhere": ELSEWHERE,
    }
    return record, crops


def _consent(consent: Consent) -> dict[str, Any]:
    until = consent.valid_until
    return {
        "reference": consent.reference,
        "valid_until": until and until.isoformat(),
        "withdrawn": consent.withdrawn,
    }


def _text(embedding: FloatArray) -> str:
    """Its numbers (float32, little endian) in base64."""
    return base64.b64encode(embedding.astype("<f4").tobytes()).decode()
