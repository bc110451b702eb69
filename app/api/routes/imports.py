"""`/v1/collections/{c}/imports`: an archive in one call, imported by the service itself."""

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, StreamingResponse

from app.api.problems import ANY_BODY, ANY_WRITE, IN_COLLECTION, IN_SPACE, problems
from app.api.responses import AnswerHead, jobs_of
from app.api.routes.collections import Collection
from app.api.schemas.imports import ImportAnswer, ImportList
from app.errors import (
    ImportNotFound,
    RequestTooLarge,
    StoreFull,
    UnsupportedMediaType,
)
from app.importing.job_folder import WAITING, Upload
from app.importing.jobs import ImportJobs
from app.importing.options import UploadOptions

OF_IMPORT = (*IN_COLLECTION, ImportNotFound)
router = APIRouter(prefix="/v1/collections/{collection}/imports", tags=["imports"])

# What a body is, by its Content-Type.
KINDS = {
    "application/zip": ".zip",
    "application/x-tar": ".tar",
    "application/gzip": ".tar",
    "application/x-ndjson": ".jsonl",
    "application/jsonl": ".jsonl",
    "text/csv": ".csv",
    "application/vnd.apache.parquet": ".parquet",
}
EVENTS_EVERY_S = 0.5
# Proxies end what is silent for long.
ALIVE_EVERY_S = 15.0


class EventStream(StreamingResponse):
    media_type = "text/event-stream"


class Report(FileResponse):
    media_type = "application/x-ndjson"


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One event for each change, named by the state; `data` is the import.",
        "content": {
            EventStream.media_type: {
                "schema": {"type": "string"},
                "example": 'event: running\ndata: {"import_id": "5f0c6b0e…", …}\n\n',
            }
        },
    }
}
REPORT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One JSON object in each line: the outcome of a row.",
        "content": {
            Report.media_type: {
                "schema": {"type": "string"},
                "example": '{"place": "people.zip/ada/1.jpg", "person_id": "ada", '
                '"result": "enrolled", "reason": ""}\n',
            }
        },
    }
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS},
    }
}


@router.post(
    "",
    status_code=202,
    response_model=ImportAnswer,
    responses=problems(ANY_BODY, ANY_WRITE, IN_SPACE, (UnsupportedMediaType,)),
    openapi_extra=BODY,
)
async def create_import(
    request: Request,
    collection: Collection,
    options: Annotated[UploadOptions, Query()],
) -> Any:
    """Upload a zip, tar or table as the body, to be imported in the background.

    The formats are those of `likeness import`. Use the answer's `import_id` to read the progress.
    If the service restarts, it continues the import.
    """
    head, jobs = AnswerHead(request), jobs_of(request)
    await head.services.scheduler.read(head.services.gallery.require, collection)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in KINDS:
        raise UnsupportedMediaType(
            f"Send the archive itself as the body, as curl --data-binary @FILE does, and name in "
            f"Content-Type which it is: {', '.join(KINDS)}; not {kind or 'nothing'}."
        )
    upload = await asyncio.to_thread(jobs.new_upload, KINDS[kind])
    try:
        await _receive(request, upload, head.services.settings.max_import_bytes)
        job = await asyncio.to_thread(jobs.create, collection, upload, options)
    finally:
        await asyncio.to_thread(upload.close)
    return {**head.envelope(), **job.model_dump()}


async def _receive(request: Request, upload: Upload, most: int) -> None:
    """The body onto the disk, a piece at a time. Raises RequestTooLarge or StoreFull."""
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise RequestTooLarge(
                    f"The archive has more than {most:,} bytes (LIKENESS_MAX_IMPORT_BYTES); "
                    "send it in parts."
                )
            await asyncio.to_thread(upload.write, piece)
        await asyncio.to_thread(upload.sync)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("There is no space for the archive; nothing was stored.") from error
        raise


@router.get("", response_model=ImportList, responses=problems(IN_COLLECTION))
async def list_imports(request: Request, collection: Collection) -> Any:
    """List the imports of a collection, the newest first."""
    head = AnswerHead(request)
    found = await asyncio.to_thread(jobs_of(request).of, collection)
    return {**head.envelope(), "items": [job.model_dump() for job in found]}


@router.get("/{import_id}", response_model=ImportAnswer, responses=problems(OF_IMPORT))
async def read_import(request: Request, collection: Collection, import_id: str) -> Any:
    """Read the state and the counts of an import."""
    head = AnswerHead(request)
    job = await asyncio.to_thread(jobs_of(request).get, collection, import_id)
    return {**head.envelope(), **job.model_dump()}


@router.get(
    "/{import_id}/events",
    response_class=EventStream,
    responses={**problems(OF_IMPORT), **EVENTS},
)
async def watch_import(request: Request, collection: Collection, import_id: str) -> EventStream:
    """Watch an import through server-sent events, one for each change, until it ends."""
    jobs = jobs_of(request)
    await asyncio.to_thread(jobs.get, collection, import_id)
    return EventStream(_events(jobs, collection, import_id))


async def _events(jobs: ImportJobs, collection: str, import_id: str) -> AsyncIterator[str]:
    last, sent_at = "", 0.0
    while True:
        try:
            job = await asyncio.to_thread(jobs.get, collection, import_id)
        except ImportNotFound:  # forgotten meanwhile
            return
        sent, now = job.model_dump_json(), time.monotonic()
        if sent != last:
            yield f"event: {job.state.value}\ndata: {sent}\n\n"
            last, sent_at = sent, now
        elif now - sent_at > ALIVE_EVERY_S:
            yield ": nothing new\n\n"
            sent_at = now
        if job.state not in WAITING:
            return
        await asyncio.sleep(EVENTS_EVERY_S)


@router.get(
    "/{import_id}/report",
    response_class=Report,
    responses={**problems(OF_IMPORT), **REPORT},
)
async def read_import_report(request: Request, collection: Collection, import_id: str) -> Report:
    """Read the outcome of each row so far, as JSON Lines."""
    jobs = jobs_of(request)
    path = await asyncio.to_thread(jobs.report, collection, import_id)
    return Report(path, media_type=Report.media_type)


@router.delete(
    "/{import_id}", response_model=ImportAnswer, responses=problems(OF_IMPORT, ANY_WRITE)
)
async def cancel_import(request: Request, collection: Collection, import_id: str) -> Any:
    """Cancel an import, or delete the record and report of one that has ended.

    Persons and faces that it enrolled are kept.
    """
    head = AnswerHead(request)
    job = await head.services.scheduler.delete(jobs_of(request).cancel, collection, import_id)
    return {**head.envelope(), **job.model_dump()}
